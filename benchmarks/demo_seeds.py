"""Mean and spread of the demo's scores over runs of several seeds, as the table of docs/demo.md.

python benchmarks/demo_seeds.py runs/demo-0 runs/demo-1 runs/demo-2
"""

import json
import sys
from pathlib import Path

import numpy as np

from maejax.evaluation.scores import FEATURES, MEASURES

reports = [json.loads((Path(run) / "report.json").read_text()) for run in sys.argv[1:]]
print("| features |", " | ".join(MEASURES.values()), "|\n|---|" + "---|" * len(MEASURES))
for kind, name in FEATURES.items():
    scores = [[report["scores"][kind][measure] for report in reports] for measure in MEASURES]
    print(f"| {name} |", " | ".join(f"{np.mean(s):.1f} ± {np.std(s, ddof=1):.1f}" for s in scores), "|")
print("\nseconds in all:", ", ".join(f"{report['seconds']['total']:.0f}" for report in reports))
