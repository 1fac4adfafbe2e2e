"""Vision-language models of a few hundred thousand random weights, saved as the public ones are."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WIDTH, PIXELS, PATCH = 32, 64, 16
TEXT = {
    "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}  # fmt: skip
EYE = {"hidden_size": 32, "intermediate_size": 64, "image_size": PIXELS, "patch_size": PATCH}


def smolvlm(folder: Path) -> None:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessor, SmolVLMProcessor
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    named = {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tokenizer = _tokenizer([*named.values(), "<bos>", "<pad>"], "<bos>", "<end_of_utterance>", named)
    side = {"longest_edge": PIXELS}
    config = SmolVLMConfig(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
        text_config={"model_type": "llama", "num_key_value_heads": 2, "head_dim": 8, **TEXT, **_ids(tokenizer)},
        vision_config={**EYE, "num_hidden_layers": 2, "num_attention_heads": 4},
    )
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size=side, max_image_size=side, do_image_splitting=False),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(
            size=side, max_image_size=side, video_sampling={"fps": 1, "max_frames": 8, "video_size": side}
        ),
        image_seq_len=(PIXELS // PATCH) ** 2 // 4,
        chat_template="<bos>{% for m in messages %}{{ m.role }}: {% for x in m.content %}"
        "{% if x.type == 'text' %}{{ x.text }}{% else %}<image>{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
    )
    _save(SmolVLMForConditionalGeneration(config), processor, folder)


def qwen3_vl(folder: Path) -> None:
    from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    tokenizer, ids = _qwen_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={**TEXT, "num_key_value_heads": 2, "head_dim": 8, "rope_parameters": rope, **_ids(tokenizer)},
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": PATCH,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": WIDTH,
            "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
        **ids,
    )  # fmt: skip
    sizes = {"shortest_edge": 32 * 32, "longest_edge": PIXELS * PIXELS}
    grid = {"patch_size": PATCH, "merge_size": 2, "size": sizes}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**grid),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(temporal_patch_size=2, **grid),
        chat_template=CHAT,
    )
    _save(Qwen3VLForConditionalGeneration(config), processor, folder)


def qwen2_5_vl(folder: Path) -> None:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
    )
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    tokenizer, ids = _qwen_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "num_key_value_heads": 2, "rope_parameters": rope, **_ids(tokenizer)},
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [1], "window_size": 56,
        },
        **ids,
    )  # fmt: skip
    grid = {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**grid),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**grid),
        chat_template=CHAT,
    )
    _save(Qwen2_5_VLForConditionalGeneration(config), processor, folder)


def paligemma(folder: Path) -> None:
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
    )

    tokenizer = _tokenizer(["<pad>", "<eos>", "<bos>", "<image>"], "<bos>", "<eos>", {"image_token": "<image>"})
    config = PaliGemmaConfig(
        vision_config={
            **EYE, "model_type": "siglip_vision_model", "num_hidden_layers": 2, "num_attention_heads": 4,
            "projection_dim": WIDTH, "vision_use_head": False,
        },
        text_config={**TEXT, "model_type": "gemma", "num_key_value_heads": 1, "head_dim": 8, **_ids(tokenizer)},
        projection_dim=WIDTH,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = SiglipImageProcessor(size={"height": PIXELS, "width": PIXELS})
    images.image_seq_length = (PIXELS // PATCH) ** 2
    _save(
        PaliGemmaForConditionalGeneration(config),
        PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer),
        folder,
    )


FAMILIES = {"smolvlm": smolvlm, "qwen3-vl": qwen3_vl, "qwen2.5-vl": qwen2_5_vl, "paligemma": paligemma}
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for x in m.content %}{% if x.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ x.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _qwen_tokenizer() -> tuple[PreTrainedTokenizerFast, dict[str, int]]:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    tokenizer = _tokenizer([*special, "<|video_pad|>"], None, "<|im_end|>", {})
    named = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return tokenizer, {f"{ours}_token_id": tokenizer.convert_tokens_to_ids(f"<|{x}|>") for ours, x in named.items()}


def _tokenizer(special: list[str], begin: str | None, end: str, named: dict[str, str]) -> PreTrainedTokenizerFast:
    """Bytes and a few merges, so that any text can be written."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces.train_from_iterator(
        ["What action should the robot take to pick up the red cube? State: 12 128 255."] * 20, trainer
    )
    if begin == "<bos>" and "<eos>" in special:
        ids = [(begin, special.index(begin))]
        pieces.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=ids)
    padding = next(x for x in ("<pad>", "<|endoftext|>") if x in special)
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token=begin, eos_token=end, pad_token=padding, model_max_length=1024,
        extra_special_tokens=named,
    )  # fmt: skip


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }  # fmt: skip


def _save(model: Any, processor: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
