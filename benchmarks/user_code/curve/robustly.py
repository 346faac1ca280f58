from victim import MODEL, X, Y

import robustly

result = robustly.curve(MODEL, (X, Y), "linf:0.05", [0.02, 0.05, 0.1, 0.2], "pgd_20")
result.plot().save("curve.svg")
verdict = result.summary.metrics.security_curve.accuracy[1:]
