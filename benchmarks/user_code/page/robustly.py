from victim import MODEL, X, Y

import robustly

result = robustly.evaluate(MODEL, (X, Y), "linf:0.05", "standard")
result.report("page.html")
verdict = result.summary.metrics.worst_case.robust.share
