from victim import NAMES, WIDE

import robustly

result = robustly.evaluate(WIDE, "photos", "linf:1/255", "aa_standard", classes=NAMES)
verdict = result.summary.metrics.worst_case.robust.share
