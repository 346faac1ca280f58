from victim import MODEL, X, Y

import robustly

result = robustly.evaluate(MODEL, (X, Y), "linf:0.05", "aa_standard")
verdict = result.summary.metrics.worst_case.robust.share
