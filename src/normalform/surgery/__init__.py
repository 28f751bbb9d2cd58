"""Change the norms of a model you already have."""

from normalform.surgery.convert import convert as convert
from normalform.surgery.convert import revert as revert
from normalform.surgery.report import Converted as Converted
from normalform.surgery.report import Left as Left
from normalform.surgery.report import Report as Report
