"""MMBench's answers: the letter that a free answer means, and when a question counts as right.

By the two rules of VLMEvalKit in its versions from August 2025 (c3371551) on, and where these cannot read an answer, by
a language model with its prompt. The third rule that VLMEvalKit has since June 2026 (a67ace50), the letter after
"answer is", is left out: it has no word boundary, and reads "The answer is blue." as B and "The answer is a dog." as A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dreamllm.sources.services.chat import Chat

UNREADABLE = "Z"  # the letter of an answer that is none of the options
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
NEAR_THE_END = 4  # words
TRIES = 3  # as in VLMEvalKit, which then guesses; here the answer is wrong then
JUDGE_PROMPT = (  # VLMEvalKit's, word for word
    "You are an AI assistant who will help me to match an answer with several options of a single-choice "
    "question. You are provided with a question, several options, and an answer, and you need to find which "
    "option is most similar to the answer. If the meaning of all options are significantly different from the "
    "answer, output Z. Your should output a single uppercase character in A, B, C, D (if they are valid "
    "options), and Z. \n"
    "Example 1: \n"
    "Question: What is the main object in image?\n"
    "Options: A. teddy bear B. rabbit C. cat D. dog\n"
    "Answer: a cute teddy bear\n"
    "Your output: A\n"
    "Example 2: \n"
    "Question: What is the main object in image?\n"
    "Options: A. teddy bear B. rabbit C. cat D. dog\n"
    "Answer: Spider\n"
    "Your output: Z\n"
    "Example 3: \n"
    "Question: {question}?\n"
    "Options: {options}\n"
    "Answer: {answer}\n"
    "Your output: "
)


def read_answer(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer means, Z for a refusal, None where the rules cannot tell.

    First rule: exactly one letter stands among the words, and among the last four of them. Second rule: exactly one
    option's text is part of the answer, which is not more than twice as long as all options.
    """
    if any(refusal in answer for refusal in REFUSALS):
        return UNREADABLE
    words = answer.translate(PUNCTUATION).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - NEAR_THE_END:
        return named[0]
    if not named and UNREADABLE in words:
        return UNREADABLE
    if len(answer) > 2 * sum(len(text) for text in options.values()):
        return None
    mentioned = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return mentioned[0] if len(mentioned) == 1 else None


def judge_prompt(item: Any, answer: str) -> str:
    """What a language model is asked about an answer that the rules cannot read."""
    options = " ".join(f"{letter}. {text}" for letter, text in item.options.items())
    return JUDGE_PROMPT.format(question=item.question.rstrip("?"), options=options, answer=answer)


def judged_letter(chat: Chat, item: Any, answer: str) -> str | None:
    """The letter that a language model reads in an answer; None when it names none in three tries."""
    prompt = judge_prompt(item, answer)
    for number in range(TRIES):
        letter = read_answer(chat.ask([{"role": "user", "content": prompt}], repeat=number), item.options)
        if letter is not None:
            return letter
    return None


def circular(items: Sequence[Any], letters: Sequence[str | None]) -> dict[str, bool]:
    """Whether each question is right: every one of its rotations has the right letter.

    letters: what was read in the answer to each item. A question whose answers the server has does not belong here.
    """
    right: dict[str, bool] = {}
    for item, letter in zip(items, letters, strict=True):
        right[item.question_id] = right.get(item.question_id, True) and letter == item.answer
    return right
