from victim import MASKED, X, Y

import robustly
from robustly.evaluation.diagnostics import masking_suspected

findings = robustly.diagnose(MASKED, (X, Y), "linf:0.1", round_to_8_bits=True)
verdict = masking_suspected(findings)
