"""Any vision-language model of transformers as a reader of observations and a writer of action tokens."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    LogitsProcessor,
    LogitsProcessorList,
)

from vla.models.token_decoders import Choice
from vla.types import Observation

DESCRIPTION = "policy.json"  # beside it lies a model that our own checkpoint has the weights of
MARK = "<<question>>"
PROMPT = "What action should the robot take to {instruction}?"


@runtime_checkable
class Words(Protocol):
    """A model that reads observations and writes action tokens; what a prompt is, is its own affair."""

    width: int  # of its hidden states

    def read(self, obs: Observation, told: list[str]) -> Any:
        """The prompt: of each row all pictures, then the question, and what else is `told`."""
        ...

    def parallel(self, prompt: Any, num_tokens: int) -> Float[Tensor, "batch tokens bins"]:
        """The logits of all tokens in one pass."""
        ...

    def after(self, prompt: Any, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens bins"]:
        """The logits of each token after the true ones before it."""
        ...

    def write(
        self, prompt: Any, num_tokens: int, choice: Choice
    ) -> tuple[Int[Tensor, "batch tokens"], Float[Tensor, "batch tokens bins"]]:
        """Tokens one by one, as `choice` picks them, and the logits it saw; the prompt is read once (KV cache)."""
        ...

    def hidden(self, prompt: Any) -> Float[Tensor, "batch width"]:
        """The last layer's state at the end of the prompt."""
        ...

    def save_beside(self, directory: Path) -> None:
        """Write what the model is built from besides its weights."""
        ...


class ActionVlm(nn.Module):
    """A pretrained model whose vocabulary is lengthened by `bins` action tokens and one that stands for "here".

    `pretrained` is a hub id or a folder. SmolVLM, Qwen-VL and PaliGemma differ in how pictures enter the prompt; their
    own processors do that. Prompts are padded on the left, so the tokens to write are always the last ones. In
    parallel, each token is asked for by one that stands for "here". With `lora_rank` only low-rank adapters (LoRA, Hu
    et al. 2021) and the embeddings are trained.
    """

    action_ids: Tensor

    def __init__(self, bins: int, pretrained: str, lora_rank: int | None = None):
        super().__init__()
        self.processor = AutoProcessor.from_pretrained(pretrained)
        self.processor.tokenizer.padding_side = "left"
        self.around: dict[int, str] = {}  # number of pictures -> prompt with a mark for the question
        vlm = _model(pretrained, bins)
        known = vlm.get_input_embeddings().num_embeddings - bins - 1
        self.here = known + bins
        self.register_buffer("action_ids", torch.arange(known, known + bins), persistent=False)
        self.prefixed = vlm.config.model_type == "paligemma"  # all of the prompt sees all of it, but nothing behind it
        self.width = vlm.config.get_text_config().hidden_size
        self.vlm = vlm if lora_rank is None else _with_lora(vlm, lora_rank)

    def read(self, obs: Observation, told: list[str]) -> BatchFeature:
        cameras = sorted(obs.images.keys())
        pictures = [[obs.images[name][i].cpu().numpy() for name in cameras] for i in range(len(told))]
        questions = [
            " ".join([PROMPT.format(instruction=said), more]).strip()
            for said, more in zip(obs.instruction, told, strict=True)
        ]
        prompts = [self._prompt(question, len(cameras)) for question in questions]
        prompt = self.processor(text=prompts, images=pictures, padding=True, return_tensors="pt")
        prompt.pop("labels", None)  # PaliGemma's would have it learn the prompt
        return prompt.to(self.action_ids.device)

    def parallel(self, prompt: BatchFeature, num_tokens: int) -> Float[Tensor, "batch tokens bins"]:
        asked = torch.full((len(prompt["input_ids"]), num_tokens), self.here, device=self.action_ids.device)
        logits = self.vlm(**self._lengthened(prompt, asked), use_cache=False, logits_to_keep=num_tokens).logits
        return logits[..., self.action_ids]

    def after(self, prompt: BatchFeature, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens bins"]:
        given = self._lengthened(prompt, self.action_ids[tokens[:, :-1]])
        return self.vlm(**given, use_cache=False, logits_to_keep=tokens.shape[1]).logits[..., self.action_ids]

    def write(
        self, prompt: BatchFeature, num_tokens: int, choice: Choice
    ) -> tuple[Int[Tensor, "batch tokens"], Float[Tensor, "batch tokens bins"]]:
        chooser = Chooser(self.action_ids, choice)
        self.vlm.generate(
            **prompt,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            num_beams=1,
            logits_processor=LogitsProcessorList([chooser]),
        )
        return torch.stack(chooser.tokens, 1), torch.stack(chooser.logits, 1)

    def hidden(self, prompt: BatchFeature) -> Float[Tensor, "batch width"]:
        return self.vlm(**prompt, use_cache=False, output_hidden_states=True, logits_to_keep=1).hidden_states[-1][:, -1]

    def save_beside(self, directory: Path) -> None:
        self.vlm.config.save_pretrained(directory)
        self.processor.save_pretrained(directory)

    def _lengthened(self, prompt: BatchFeature, tokens: Int[Tensor, "batch more"]) -> dict[str, Any]:
        """The prompt with more tokens behind it, which are neither pictures nor, as PaliGemma calls it, prefix."""
        longer = dict(prompt)
        shape = prompt["input_ids"].shape
        marks = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if self.prefixed:
            marks["token_type_ids"] = torch.ones_like(tokens)
        for name, value in prompt.items():
            if isinstance(value, Tensor) and value.shape == shape:
                more = marks.get(name, torch.zeros_like(tokens))
                longer[name] = torch.cat([value, more.to(value.dtype)], 1)
        return longer

    def _prompt(self, question: str, num_pictures: int) -> str:
        """As the model was taught to be asked; what is around a question is made once."""
        if num_pictures not in self.around:
            said = [{"type": "image"}] * num_pictures + [{"type": "text", "text": MARK}]
            if getattr(self.processor, "chat_template", None) is None:
                self.around[num_pictures] = self.processor.image_token * num_pictures + MARK + "\n"
            else:
                talk = [{"role": "user", "content": said}]
                self.around[num_pictures] = self.processor.apply_chat_template(talk, add_generation_prompt=True)
        return self.around[num_pictures].replace(MARK, question)


class Chooser(LogitsProcessor):
    """Makes a greedy `generate` take what `choice` picks among the action tokens, and keeps what it saw."""

    def __init__(self, action_ids: Int[Tensor, " bins"], choice: Choice):
        self.action_ids, self.choice = action_ids, choice
        self.tokens: list[Tensor] = []
        self.logits: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.logits.append(scores[:, self.action_ids])
        self.tokens.append(self.choice(self.logits[-1]))
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(1, self.action_ids[self.tokens[-1]][:, None], 0.0)


def _model(pretrained: str, bins: int) -> Any:
    if (Path(pretrained) / DESCRIPTION).exists():
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(pretrained))
    vlm: Any = AutoModelForImageTextToText.from_pretrained(pretrained, dtype=torch.float32)
    vlm.resize_token_embeddings(vlm.get_input_embeddings().num_embeddings + bins + 1)
    return vlm


def _with_lora(vlm: Any, rank: int) -> Any:
    from peft import LoraConfig, get_peft_model

    new = ["embed_tokens", "lm_head"]  # the action tokens' rows are new: they are trained whole
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", modules_to_save=new)
    return get_peft_model(vlm, config)
