"""Write the digests beside the committed study, after copying new results there.

Usage: python workflow/study_digests.py

    results/study/results.sha256    of every file in metrics/ and items/;
                                    check: cd results/study && sha256sum -c results.sha256
    results/study/answers.sha256    of the raw predictions behind the metrics, which are not in git;
                                    check where they are: sha256sum -c results/study/answers.sha256

`make audit` compares both with the committed files, so that a number without item scores cannot be edited unnoticed.
"""

from __future__ import annotations

from pathlib import Path

from dreamllm.atomic import new_file
from dreamllm.repro.audit.study import STUDY, answers, results

for name, digests in (("results.sha256", results(STUDY)), ("answers.sha256", answers(STUDY))):
    with new_file(Path(STUDY) / name) as file:
        file.write_text("".join(f"{digest}  {path}\n" for path, digest in digests.items()), encoding="utf-8")
