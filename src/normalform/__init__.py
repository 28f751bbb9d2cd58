"""Every normalization from one idea: which elements share a mean and a variance."""

from normalform import reference as reference
from normalform.recipes import Recipe as Recipe
from normalform.recipes import recipe as recipe
