"""Which elements share a mean, as pictures drawn from the recipe: nothing is drawn by hand.

``sets.py`` lays a recipe over a shape and chooses what is drawn of it; ``views.py`` places that on
paper, ``svg.py`` writes it down, ``card.py`` says something beside it.
"""

from normalform.drawing.sets import Sets as Sets
from normalform.drawing.sets import example_shape as example_shape
from normalform.drawing.sets import sized as sized
