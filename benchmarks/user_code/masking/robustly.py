from victim import MASKED, X, Y

import robustly
from robustly.evaluation.diagnostics import masking_suspected

findings = robustly.diagnose(MASKED, (X, Y), "linf:0.05")
verdict = bool(masking_suspected(findings))
