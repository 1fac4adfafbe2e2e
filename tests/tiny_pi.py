"""pi0 and pi0.5 with few and random weights: LeRobot has their sizes in its code, so these are replaced."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from tiny_vlms import EYE, TEXT, WIDTH

WORDS = 512


def shrink(patch: pytest.MonkeyPatch, tokenizer: Path) -> None:
    """While the patch lasts, both are small wherever they are built, and their tokenizer is the one in a folder."""
    from transformers import AutoTokenizer, PaliGemmaConfig

    for name in ("pi0", "pi05"):
        module = importlib.import_module(f"lerobot.policies.{name}.modeling_{name}")
        known, build = module.CONFIG_MAPPING, module.PaliGemmaForConditionalGenerationWithPiGemma
        sizes = module.GemmaConfig(width=WIDTH, depth=2, mlp_dim=64, num_heads=8, num_kv_heads=1, head_dim=8)
        eye = {**EYE, "model_type": "siglip_vision_model", "num_hidden_layers": 2, "num_attention_heads": 4}
        words = {**TEXT, "model_type": "gemma", "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 8}

        def vlm(eye: Any = eye, words: Any = words) -> Any:
            return PaliGemmaConfig(vision_config={**eye, "projection_dim": WIDTH}, text_config=words)

        def expert(gemma: Any = known["gemma"], **told: Any) -> Any:
            return gemma(**{**told, "vocab_size": WORDS})

        def small(config: Any, build: Any = build) -> Any:
            config.text_config.vocab_size = config._vocab_size = WORDS
            config.image_token_index = 4
            config.vision_config.intermediate_size = EYE["intermediate_size"]
            config.vision_config.projection_dim = config.projection_dim = WIDTH
            return build(config=config)

        patch.setattr(module, "get_gemma_config", lambda variant, sizes=sizes: sizes)
        patch.setattr(module, "CONFIG_MAPPING", {"paligemma": vlm, "gemma": expert})
        patch.setattr(module, "PaliGemmaForConditionalGenerationWithPiGemma", small)

    class Local:
        @staticmethod
        def from_pretrained(name: str, **options: Any) -> Any:
            return AutoTokenizer.from_pretrained(tokenizer if name.startswith("google/paligemma") else name, **options)

    patch.setattr(importlib.import_module("lerobot.processor.tokenizer_processor"), "AutoTokenizer", Local)
