"""What is wrong with the norms of a model, what it costs, and what mends it."""

from normalform.diagnose.diagnosis import Diagnosis as Diagnosis
from normalform.diagnose.examine import diagnose as diagnose
from normalform.diagnose.finding import Finding as Finding
from normalform.diagnose.finding import Losses as Losses
from normalform.diagnose.finding import Row as Row
from normalform.diagnose.finding import Tried as Tried
