from victim import MODEL, X, Y

import robustly

result = robustly.evaluate(MODEL, (X, Y), "linf:0.1", "aa_standard", round_to_8_bits=True)
verdict = result.summary.metrics.worst_case.robust.share
