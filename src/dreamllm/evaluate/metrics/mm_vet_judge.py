"""Scoring of MM-Vet's free answers by a language model (`answer_judge`), with numbers from 0 to 1.

Prompt, number of tokens and repeated questions are those of the official evaluator; but where it
counts a reply that never is a number as 0, the score here is undefined, with the reason.
"""

from __future__ import annotations

import math
from typing import Any

from dreamllm.sources.services.chat import Chat

TRIES = 5
_MEME = (
    "Can you explain this meme? | This meme is poking fun at the fact that the names of the countries Iceland "
    "and Greenland are misleading. Despite its name, Iceland is known for its beautiful green landscapes, while "
    "Greenland is mostly covered in ice and snow. The meme is saying that the person has trust issues because "
    "the names of these countries do not accurately represent their landscapes. | "
)
JUDGE_PROMPT = (
    "Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. "
    "<AND> in the ground truth means it is totally right only when all elements in the ground truth are present "
    "in the prediction, and <OR> means it is totally right when any one element in the ground truth is present "
    "in the prediction. The correctness score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, "
    "0.9, or 1.0 (totally right). Just complete the last space of the correctness score.\n"
    "\n"
    "Question | Ground truth | Prediction | Correctness\n"
    "--- | --- | --- | ---\n"
    "What is x in the equation? | -1 <AND> -5 | x = 3 | 0.0\n"
    "What is x in the equation? | -1 <AND> -5 | x = -1 | 0.5\n"
    "What is x in the equation? | -1 <AND> -5 | x = -5 | 0.5\n"
    "What is x in the equation? | -1 <AND> -5 | x = -5 or 5 | 0.5\n"
    "What is x in the equation? | -1 <AND> -5 | x = -1 or x = -5 | 1.0\n"
    f"{_MEME}The meme talks about Iceland and Greenland. It's pointing out that despite their names, Iceland is "
    "not very icy and Greenland isn't very green. | 0.4\n"
    f"{_MEME}The meme is using humor to point out the misleading nature of Iceland's and Greenland's names. "
    "Iceland, despite its name, has lush green landscapes while Greenland is mostly covered in ice and snow. The "
    "text 'This is why I have trust issues' is a playful way to suggest that these contradictions can lead to "
    "distrust or confusion. The humor in this meme is derived from the unexpected contrast between the names of "
    "the countries and their actual physical characteristics. | 1.0\n"
)
AGAIN = "\nPredict the correctness of the answer (digit): "


def judge_prompt(item: Any, prediction: str) -> str:
    """The table whose last cell the language model fills."""
    answer = item.answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return JUDGE_PROMPT + "\n" + " | ".join([item.question, answer, prediction, ""])


def read_score(text: str) -> float | None:
    """The number from 0 to 1 that a judge's answer begins with; None for anything else."""
    try:
        score = float(text.split(" ")[0].strip())
    except ValueError:
        return None
    return score if math.isfinite(score) and 0 <= score <= 1 else None


def judge(chat: Chat, item: Any, prediction: str, judging: int) -> float | None:
    """The judge's score of an answer; None when it answers five times with something else.

    judging: number of the time that this answer is judged. As in the official evaluator, further tries end in a plain
    request for the digit and become more random. Raises FetchProblem when the service fails.
    """
    prompt = judge_prompt(item, prediction)
    for number in range(TRIES):
        said = chat.ask(
            [{"role": "user", "content": prompt + (AGAIN if number else "")}],
            temperature=0.5 * max(0, number - 1),
            repeat=judging * TRIES + number,
            max_tokens=3,
        )
        if (score := read_score(said)) is not None:
            return score
    return None
