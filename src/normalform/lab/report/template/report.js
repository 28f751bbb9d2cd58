"use strict";
(() => {
  const page = JSON.parse(document.getElementById("page").textContent);
  const options = { renderer: "svg", actions: false, config: page.theme };
  const views = new Map(); // slot element -> view
  const hidden = new Set();
  const off = {}; // name of a chart -> what its own buttons hide
  const chosen = {}; // group -> quantity
  let epoch = null;

  function specOf(slot) {
    const { spec, group, values } = JSON.parse(slot.dataset.chart);
    const name = group ? `${spec}:${chosen[group]}` : spec;
    let text = JSON.stringify(page.specs[name]);
    for (const [key, value] of Object.entries(values)) text = text.replaceAll(`@${key}`, value);
    const copy = JSON.parse(text);
    const now = { off: [...hidden], ...(epoch === null ? {} : { epoch }) };
    for (const param of copy.params ?? []) if (param.name in now) param.value = now[param.name];
    const gone = off[name] ?? {}; // field -> hidden values
    copy.datasets = Object.fromEntries(Object.entries(copy.datasets ?? {}).map(([table, rows]) => [
      table, rows.filter((row) => !Object.entries(gone).some(([field, values]) => values.has(String(row[field])))),
    ]));
    for (const [table, key] of Object.entries(page.tables[name])) copy.datasets[table] = page.data[key];
    return copy;
  }

  async function draw(slot) {
    const { view } = await vegaEmbed(slot, specOf(slot), options);
    const old = views.get(slot);
    views.set(slot, view);
    if (old) old.finalize();
  }

  function tell(name, value) {
    for (const view of views.values()) {
      try { view.signal(name, value).runAsync(); } catch { /* this chart has no such signal */ }
    }
  }

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const key = button.dataset.key;
      const hide = !hidden.has(key);
      if (hide) hidden.add(key); else hidden.delete(key);
      button.setAttribute("aria-pressed", String(!hide));
      tell("off", [...hidden]);
    });
  }
  for (const button of document.querySelectorAll(".keys button")) {
    const name = button.parentElement.dataset.of;
    const slot = [...document.querySelectorAll("[data-chart]")].find((one) => JSON.parse(one.dataset.chart).spec === name);
    const { field, value } = button.dataset;
    button.addEventListener("click", () => {
      const values = ((off[name] ??= {})[field] ??= new Set());
      const hide = !values.has(value);
      if (hide) values.add(value); else values.delete(value);
      button.setAttribute("aria-pressed", String(!hide));
      draw(slot);
    });
  }
  for (const input of document.querySelectorAll(".controls input[type=radio]")) {
    if (input.checked) chosen[input.name] = input.value;
    input.addEventListener("change", () => {
      chosen[input.name] = input.value;
      for (const slot of document.querySelectorAll(`[data-group="${input.name}"]`)) draw(slot);
    });
  }
  for (const slider of document.querySelectorAll(".slide input")) {
    const shown = slider.parentElement.querySelector("output");
    slider.addEventListener("input", () => {
      epoch = Number(slider.value);
      shown.value = slider.value;
      tell("epoch", epoch);
    });
  }
  (async () => {
    for (const slot of document.querySelectorAll("[data-chart]")) {
      try { await draw(slot); } catch (error) { slot.textContent = `This chart cannot be drawn: ${error.message}`; }
    }
    document.body.dataset.drawn = "true";
  })();
})();
