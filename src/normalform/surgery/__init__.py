"""Change the norms of a model you already have."""

from normalform.surgery.convert import convert as convert
from normalform.surgery.convert import revert as revert
from normalform.surgery.effect import Effect as Effect
from normalform.surgery.folding.fold import fold as fold
from normalform.surgery.folding.result import Folded as Folded
from normalform.surgery.folding.result import Folding as Folding
from normalform.surgery.folding.result import Proof as Proof
from normalform.surgery.freeze import freeze as freeze
from normalform.surgery.freeze import unfreeze as unfreeze
from normalform.surgery.groups import param_groups as param_groups
from normalform.surgery.recalibrate import Recalibrated as Recalibrated
from normalform.surgery.recalibrate import Recalibration as Recalibration
from normalform.surgery.recalibrate import recalibrate as recalibrate
from normalform.surgery.report import Converted as Converted
from normalform.surgery.report import Left as Left
from normalform.surgery.report import Report as Report
