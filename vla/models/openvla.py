"""OpenVLA (Kim et al. 2024) and OpenVLA-OFT (2025), from their public checkpoints, without their code.

Two vision towers (DINOv2 and SigLIP) side by side, a projector, and Llama 2. Files: `config.json`, safetensors in
shards, a tokenizer; `dataset_statistics.json` where a checkpoint was tuned.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import gelu
from torchvision.transforms.v2.functional import InterpolationMode, center_crop, resize
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizerFast, LogitsProcessorList

from vla.models.hub import folder_of
from vla.models.token_decoders import Choice
from vla.models.vlm import DESCRIPTION, Chooser
from vla.types import Observation

DINO = ((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375))  # rounded as in the checkpoints
SIGLIP = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
SPACE = 29871  # the token that came before every action in training
BINS = 256  # action tokens: the last ones of Llama's 32,000, the lowest command being the very last
FILES = ["*.json", "*.safetensors", "tokenizer*", "*.pt"]


class OpenVla(nn.Module):
    """The model of a hub id or folder `pretrained`; ValueError naming the keys if its weights are not all there.

    Tokens one by one see what is before them (OpenVLA). In parallel each of them is asked for by an empty embedding,
    and all see all (OFT). `crop` is the share of each side of a picture that is looked at: 0.95 for 90 % of the area,
    which checkpoints that were trained with random crops want. Weights keep the precision of the file.
    """

    action_ids: Tensor

    def __init__(self, bins: int, pretrained: str, crop: float = 1.0):
        super().__init__()
        if bins != BINS:
            raise ValueError(f"OpenVLA's tokens are {BINS} bins, got bins={bins}")
        self.folder = folder_of(pretrained, FILES)
        self.settings = json.loads((self.folder / "config.json").read_text())
        self.crop = crop
        self.tokenizer = LlamaTokenizerFast.from_pretrained(self.folder)
        own = (self.folder / DESCRIPTION).exists()  # then the weights come with the policy's
        with torch.device("cpu" if own else "meta"):
            self.vision_backbone = Towers(self.settings)
            llama = LlamaConfig(**self.settings["text_config"])
            self.projector = Projector(self.vision_backbone.width, llama.hidden_size)
        self.language_model: Any = LlamaForCausalLM(llama) if own else _without_weights(llama)
        if not own:
            _load(self, self.folder)
        self.width = llama.hidden_size
        words = llama.vocab_size - self.settings["pad_to_multiple_of"]
        self.register_buffer("action_ids", words - 1 - torch.arange(BINS), persistent=False)

    def read(
        self, obs: Observation, told: list[str], shown: Float[Tensor, "batch places width"] | None = None
    ) -> dict[str, Tensor]:
        """Embeddings of the prompt, and which of them count: the first token, the pictures and what else is `shown`,
        padding, the question."""
        said = [PROMPT.format(instruction=x.lower()) for x in obs.instruction]
        if any(told):
            raise ValueError("OpenVLA is told nothing but the instruction: set proprio=false")
        ids = [[*self.tokenizer(x, add_special_tokens=False)["input_ids"], SPACE] for x in said]
        longest = max(map(len, ids))
        device = self.action_ids.device
        padded = torch.tensor([[0] * (longest - len(x)) + x for x in ids], device=device)
        counts = torch.tensor([[0] * (longest - len(x)) + [1] * len(x) for x in ids], device=device)
        embed = self.language_model.get_input_embeddings()
        first = torch.full((len(ids), 1), self.tokenizer.bos_token_id, device=device)
        seen = self.projector(self.vision_backbone(self._pictures(obs)))
        seen = seen if shown is None else torch.cat([seen, shown.to(seen.dtype)], 1)
        prompt = torch.cat([embed(first), seen, embed(padded)], 1)
        mask = torch.cat([counts.new_ones(len(ids), 1 + seen.shape[1]), counts], 1)
        return {"inputs_embeds": prompt, "attention_mask": mask}

    def parallel(self, prompt: dict[str, Tensor], num_tokens: int) -> Float[Tensor, "batch tokens bins"]:
        return self.language_model.lm_head(self.places(prompt, num_tokens))[..., self.action_ids]

    def places(self, prompt: dict[str, Tensor], num_tokens: int) -> Float[Tensor, "batch tokens width"]:
        """The last layer's states that all tokens are read from: each one place before its empty embedding."""
        embeds, mask = prompt["inputs_embeds"], prompt["attention_mask"]
        end = torch.full((len(embeds), 1), self.tokenizer.eos_token_id, device=embeds.device)
        end = self.language_model.get_input_embeddings()(end)
        embeds = torch.cat([embeds, embeds.new_zeros(len(embeds), num_tokens, embeds.shape[-1]), end], 1)
        mask = torch.cat([mask, mask.new_ones(len(mask), num_tokens + 1)], 1)
        hidden = torch.finfo(embeds.dtype).min
        all_see_all = torch.where(mask[:, None, None, :].bool(), 0.0, hidden).to(embeds.dtype)
        out = self.language_model.model(
            inputs_embeds=embeds,
            attention_mask=all_see_all.expand(-1, 1, embeds.shape[1], -1),
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
        )
        return out.last_hidden_state[:, -(num_tokens + 2) : -2]

    def after(
        self, prompt: dict[str, Tensor], tokens: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens bins"]:
        given = self.language_model.get_input_embeddings()(self.action_ids[tokens[:, :-1]])
        mask = prompt["attention_mask"]
        mask = torch.cat([mask, mask.new_ones(given.shape[:2])], 1)
        logits = self.language_model(
            inputs_embeds=torch.cat([prompt["inputs_embeds"], given], 1),
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=tokens.shape[1],
        ).logits
        return logits[..., self.action_ids]

    def write(
        self, prompt: dict[str, Tensor], num_tokens: int, choice: Choice
    ) -> tuple[Int[Tensor, "batch tokens"], Float[Tensor, "batch tokens bins"]]:
        chooser = Chooser(self.action_ids, choice)
        self.language_model.generate(
            **prompt,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([chooser]),
        )
        return torch.stack(chooser.tokens, 1), torch.stack(chooser.logits, 1)

    def hidden(self, prompt: dict[str, Tensor]) -> Float[Tensor, "batch width"]:
        mask = prompt["attention_mask"]
        out = self.language_model.model(**prompt, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), use_cache=False)
        return out.last_hidden_state[:, -1]

    def statistics(self, dataset: str, of: str = "action") -> dict[str, list[Any]]:
        """Of a dataset's actions, or proprio: `q01`, `q99`, and `mask`, what they scale. ValueError says which are."""
        known = dict(self.settings.get("norm_stats", {}))
        extra = self.folder / "dataset_statistics.json"
        known |= json.loads(extra.read_text()) if extra.exists() else {}
        for name in (dataset, f"{dataset}_no_noops"):
            if name in known:
                return known[name][of]
        raise ValueError(
            f"{self.folder} has no statistics of {dataset!r}, only of {', '.join(sorted(known)) or 'none'}"
        )

    def save_beside(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(directory)
        for name in ("config.json", "dataset_statistics.json"):
            if (self.folder / name).exists() and self.folder.resolve() != directory.resolve():
                shutil.copy(self.folder / name, directory / name)

    def _pictures(self, obs: Observation) -> Float[Tensor, "batch channels height width"]:
        """Per camera three channels as DINOv2 wants them, then three as SigLIP does."""
        size, parts = self.settings["image_sizes"][0], []
        for name in sorted(obs.images.keys()):
            picture = obs.images[name].to(self.action_ids.device).permute(0, 3, 1, 2)
            if self.crop < 1:
                picture = center_crop(picture, [round(self.crop * x) for x in picture.shape[-2:]])
            picture = resize(picture, [size, size], InterpolationMode.BICUBIC, antialias=True).float() / 255
            for mean, std in (DINO, SIGLIP):
                shape = (1, 3, 1, 1)
                parts.append((picture - picture.new_tensor(mean).view(shape)) / picture.new_tensor(std).view(shape))
        return torch.cat(parts, 1).to(self.projector.fc1.weight.dtype)


class Towers(nn.Module):
    """Patches of both towers, from their second-to-last blocks, channels side by side; cameras one after another."""

    featurizer: Any
    fused_featurizer: Any

    def __init__(self, settings: dict[str, Any]):
        super().__init__()
        import timm  # seconds to import

        size = settings["image_sizes"][0]
        names, acts = settings["timm_model_ids"], settings["timm_override_act_layers"]
        options = settings.get("timm_options", [{}] * len(names))  # of models smaller than their names say
        self.featurizer, self.fused_featurizer = (
            timm.create_model(
                name, pretrained=False, num_classes=0, img_size=size, **({"act_layer": act} if act else {}), **more
            )
            for name, act, more in zip(names, acts, options, strict=True)
        )
        self.width = sum(int(tower.embed_dim) for tower in (self.featurizer, self.fused_featurizer))

    def forward(
        self, pictures: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch patches features"]:
        seen = []
        for both in pictures.split(6, 1):
            towers = zip((self.featurizer, self.fused_featurizer), both.split(3, 1), strict=True)
            seen.append(torch.cat([_patches(tower, picture) for tower, picture in towers], -1))
        return torch.cat(seen, 1)


class Projector(nn.Module):
    def __init__(self, vision: int, words: int):
        super().__init__()
        self.fc1 = nn.Linear(vision, 4 * vision)
        self.fc2 = nn.Linear(4 * vision, words)
        self.fc3 = nn.Linear(words, words)

    def forward(self, x: Float[Tensor, "batch patches vision"]) -> Float[Tensor, "batch patches words"]:
        return self.fc3(gelu(self.fc2(gelu(self.fc1(x)))))


def public_name(ours: str) -> str:
    """What the public checkpoints call a parameter of ours: scales of residual branches have another name there."""
    return ours.replace(".ls1.gamma", ".ls1.scale_factor").replace(".ls2.gamma", ".ls2.scale_factor")


def _patches(tower: Any, picture: Tensor) -> Tensor:
    last_but_one = {len(tower.blocks) - 2}
    return tower.get_intermediate_layers(picture, n=last_but_one)[0]


def _without_weights(config: LlamaConfig) -> LlamaForCausalLM:
    """On the meta device but for what is computed, not loaded."""
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model


def _load(model: nn.Module, folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no weights (*.safetensors)")
    there = {name: x for file in files for name, x in load_file(file).items()}
    named = {public_name(name): name for name in model.state_dict()}
    missing, unknown = sorted(named.keys() - there.keys()), sorted(there.keys() - named.keys())
    if missing or unknown:
        raise ValueError(
            f"the weights in {folder} are not OpenVLA's: {len(missing)} are missing ({', '.join(missing[:3])} ...), "
            f"{len(unknown)} are unknown ({', '.join(unknown[:3])} ...)"
        )
    model.load_state_dict({named[name]: x for name, x in there.items()}, strict=True, assign=True)
