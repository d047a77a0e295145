"""lmms-eval's model classes for DreamLLM. Needs lmms-eval; `requests.py` has what does not."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from dreamllm.data.document import Document
from dreamllm.evaluate import model_options
from dreamllm.lmms_eval import requests as of_request
from dreamllm.seeds import seed_of


class DreamLLM(lmms):
    """DreamLLM on tasks that give a question's words and images (`--force_simple`), and on those of likelihoods.

    pretrained: a run's checkpoint, a folder of `dreamllm export` or a name on the Hub, as `--model` of `dreamllm ask`
    foundations: of a checkpoint.  batch_size: prompts at once.  device: by default the GPU if there is one
    seed: of tasks that sample
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        foundations: str = str(model_options.FOUNDATIONS),
        batch_size: int | str = 1,
        device: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise of_request.RequestProblem(f"batch_size is {batch_size!r}, a number from 1 is needed")
        self.accelerator = Accelerator()  # with `accelerate launch`, each process answers a part on its own GPU
        chosen = Namespace(model=str(pretrained), foundations=Path(foundations), checkpoints=None)
        self.model, self.processor = model_options.load(chosen)
        if device and self.accelerator.num_processes == 1:
            self.model.to(device)
        self.batch_size, self.seed = int(batch_size), seed

    @property
    def device(self) -> Any:
        """Where the model is; lmms-eval gathers over processes there."""
        return self.model.device

    def document(self, arguments: tuple[Any, ...]) -> tuple[Document, dict[str, Any], str]:
        """The prompt, generation arguments and task of a request of `generate_until`."""
        context, options, images_of, number, task, split = arguments
        return self._question(context, images_of, number, task, split), options, task

    def _question(self, context: str, images_of: Any, number: int, task: str, split: str) -> Document:
        images = images_of(self.task_dict[task][split][number]) if images_of else []
        return of_request.question(f"{task} {number}", context, images or [])

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answers, in the order of the requests. A prompt that fills the context has an empty one, with a warning.

        Raises RequestProblem for requests that the model cannot answer, such as videos.
        """
        asked = [self.document(request.args) for request in requests]
        documents = [document for document, _, _ in asked]
        lengths = of_request.lengths_of(self.processor, documents)
        groups: dict[of_request.Options, list[int]] = defaultdict(list)  # of one setting, which form batches
        for index, (_, arguments, task) in enumerate(asked):
            if lengths[index] is not None:
                groups[of_request.options_of(arguments, task)].append(index)
        if too_long := [document.id for document, length in zip(documents, lengths, strict=True) if length is None]:
            warnings.warn(
                f"{len(too_long)} of {len(asked)} prompts fill the context of {self.processor.context} tokens; their "
                f"answers are empty: {', '.join(too_long[:5])}",
                stacklevel=2,
            )
        answers = [""] * len(asked)
        with tqdm(total=len(asked) - len(too_long), desc="answers", disable=self.rank != 0) as bar:
            for options, members in groups.items():
                room = self.processor.context - options.max_new_tokens
                for batch in of_request.batches([lengths[i] or 0 for i in members], self.batch_size, room):
                    chosen = [members[position] for position in batch]
                    prompts = [documents[i] for i in chosen]
                    seeds = [seed_of(self.seed, prompt.id) for prompt in prompts]
                    texts = of_request.answer(self.model, self.processor, prompts, options, seeds)
                    for index, text in zip(chosen, texts, strict=True):
                        answers[index] = text
                    bar.update(len(batch))
        return answers

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """(loss of an answer, whether it is the greedy one) of each; a loss, because lmms-eval looks for the least.

        In a GenerationResult each, whose content lmms-eval 0.7 passes on; a bare tuple it would make a string.

        Raises LayoutProblem for a question that does not fit the context, RequestProblem as `generate_until`.
        """
        questions, answers = [], []
        for context, answer_of, images_of, number, task, split in (request.args for request in requests):
            questions.append(self._question(context, images_of, number, task, split))
            row = self.task_dict[task][split][number]
            answers.append(answer_of if isinstance(answer_of, str) else str(answer_of(row)))
        results: list[GenerationResult] = []
        for start in tqdm(range(0, len(questions), self.batch_size), desc="likelihoods", disable=self.rank != 0):
            chosen = slice(start, start + self.batch_size)
            measured = of_request.losses(self.model, self.processor, questions[chosen], answers[chosen])
            results += [GenerationResult(one) for one in measured]
        return results

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Raises NotImplementedError: tasks of several rounds ask other models' protocols."""
        raise NotImplementedError(
            "DreamLLM's adapter answers in one round; leave out tasks of generate_until_multi_round"
        )


class DreamLLMChat(DreamLLM):
    """DreamLLM on tasks that give messages, lmms-eval's recommended interface and its choice without --force_simple."""

    is_simple = False

    def document(self, arguments: tuple[Any, ...]) -> tuple[Document, dict[str, Any], str]:
        """The prompt, generation arguments and task of a request of `generate_until`."""
        _, messages_of, options, number, task, split = arguments
        messages = ChatMessages(messages=messages_of(self.task_dict[task][split][number])).model_dump()["messages"]
        return of_request.document_of(f"{task} {number}", messages), options, task
