"""Tiny random models, one per family of transformers: the doubles every numeric test of this folder works on.

    build("llama")                                        a 3-layer LlamaForCausalLM, float32, evaluation mode
    build("gpt2", dtype=torch.bfloat16, attn="eager", seed=1, layers=6)
    FAMILIES["opt_post_norm"]()                           the same as build("opt_post_norm")
    build_refused("mamba")                                a model that has no last FFN to tune

Every parameter is drawn anew: a bias left at 0, a norm left at 1 or a multiplier left at 1 would hide that somebody
forgot it. Building one takes some 20 ms; nothing is read from disk or network.
"""

from collections.abc import Callable
from functools import partial

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

VOCAB_SIZE = 288  # enough for the byte-level tokenizer of tiny_tokenizer.py
PAD, BOS, EOS = 0, 1, 2

# Shape under the two usual sets of names. Families that know a name only as an alias take it all the same.
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "attention_dropout": 0.0,
}
FULL_HEADS = {**SHAPE, "num_key_value_heads": 4}
GPT = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 48,
    "n_head": 4,
    "n_positions": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
OPT = dict(SHAPE, ffn_dim=80, dropout=0.0)
MLA = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
DEEPSEEK = dict(FULL_HEADS, **MLA, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
DEEPSEEK_V3 = dict(DEEPSEEK, n_group=2, topk_group=1, n_shared_experts=1, head_dim=8)
FALCON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}

# family: (name of its config class without `Config`, arguments of it). Dense: one gated or plain FFN per layer.
DENSE: dict[str, tuple[str, dict]] = {
    "llama": ("Llama", SHAPE),
    "llama_biases": ("Llama", dict(SHAPE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "qwen2": ("Qwen2", SHAPE),
    "qwen3": ("Qwen3", SHAPE),
    "mistral": ("Mistral", dict(SHAPE, sliding_window=6)),
    "ministral": ("Ministral", SHAPE),
    "gemma": ("Gemma", SHAPE),
    "gemma2": ("Gemma2", dict(SHAPE, sliding_window=6, final_logit_softcapping=3.0, attn_logit_softcapping=5.0)),
    "gemma3_text": ("Gemma3Text", dict(SHAPE, sliding_window=6)),
    "olmo": ("Olmo", dict(SHAPE, clip_qkv=3.0)),
    "olmo2": ("Olmo2", SHAPE),
    "olmo3": ("Olmo3", dict(SHAPE, sliding_window=6)),
    "phi": ("Phi", dict(SHAPE, partial_rotary_factor=0.5)),
    "phi3": ("Phi3", SHAPE),
    "glm": ("Glm", dict(SHAPE, partial_rotary_factor=0.5)),
    "glm4": ("Glm4", dict(SHAPE, partial_rotary_factor=0.5)),
    "granite": (
        "Granite",
        dict(SHAPE, logits_scaling=3.0, residual_multiplier=0.4, embedding_multiplier=2.0, attention_multiplier=0.2),
    ),
    "cohere": ("Cohere", dict(SHAPE, logit_scale=0.3)),
    "cohere2": ("Cohere2", dict(SHAPE, logit_scale=0.3, sliding_window=6)),
    "starcoder2": ("Starcoder2", dict(SHAPE, residual_dropout=0.0, embedding_dropout=0.0)),
    "stablelm": ("StableLm", dict(SHAPE, use_qkv_bias=True, partial_rotary_factor=0.5)),
    "stablelm_parallel": (
        "StableLm",
        dict(SHAPE, use_parallel_residual=True, qk_layernorm=True, partial_rotary_factor=0.5),
    ),
    "gpt_neox": ("GPTNeoX", dict(FULL_HEADS, use_parallel_residual=True)),
    "gpt_neox_sequential": ("GPTNeoX", dict(FULL_HEADS, use_parallel_residual=False)),
    "falcon": ("Falcon", dict(FALCON, multi_query=True, parallel_attn=True, bias=False)),
    "falcon_new_decoder": ("Falcon", dict(FALCON, new_decoder_architecture=True, num_kv_heads=2)),
    "falcon_alibi": ("Falcon", dict(FALCON, alibi=True, parallel_attn=False, multi_query=False, bias=True)),
    "gpt2": ("GPT2", GPT),
    "opt": ("OPT", OPT),
    "opt_post_norm": ("OPT", dict(OPT, do_layer_norm_before=False, word_embed_proj_dim=24)),
    "bloom": (
        "Bloom",
        {"vocab_size": VOCAB_SIZE, "hidden_size": 48, "n_head": 4, "bos_token_id": BOS, "eos_token_id": EOS},
    ),
    "gptj": ("GPTJ", dict(GPT, rotary_dim=8)),
    "mpt": ("Mpt", {"vocab_size": VOCAB_SIZE, "d_model": 48, "n_heads": 4, "max_seq_len": 512, "expansion_ratio": 2}),
    "nemotron": ("Nemotron", dict(SHAPE, partial_rotary_factor=0.5)),
    "smollm3": ("SmolLM3", SHAPE),
    "gpt_neo": (
        "GPTNeo",
        {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 48,
            "num_heads": 4,
            "max_position_embeddings": 512,
            "window_size": 6,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "resid_dropout": 0.0,
            "embed_dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ),
    "codegen": ("CodeGen", dict(GPT, rotary_dim=8)),
    "gpt_bigcode": ("GPTBigCode", GPT),
    "xglm": (
        "XGLM",
        {
            "vocab_size": VOCAB_SIZE,
            "d_model": 48,
            "ffn_dim": 80,
            "attention_heads": 4,
            "max_position_embeddings": 512,
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
        },
    ),
    "persimmon": ("Persimmon", dict(SHAPE, partial_rotary_factor=0.5)),
    "ernie4_5": ("Ernie4_5", SHAPE),
    "hunyuan_v1_dense": ("HunYuanDenseV1", SHAPE),
    "deepseek_v3_dense": ("DeepseekV3", dict(DEEPSEEK_V3, first_k_dense_replace=99)),
    "lfm2": ("Lfm2", dict(SHAPE, block_auto_adjust_ff_dim=False, full_attn_idxs=[0, 2])),
    "exaone4": ("Exaone4", dict(SHAPE, sliding_window=6)),
    "seed_oss": ("SeedOss", SHAPE),
    "apertus": ("Apertus", SHAPE),
    "arcee": ("Arcee", SHAPE),
    "helium": ("Helium", SHAPE),
    "biogpt": ("BioGpt", SHAPE),
    "nanochat": ("NanoChat", SHAPE),
}

# Mixtures of experts: the FFN of the last layer is a router, its experts and sometimes a shared expert.
MIXTURES: dict[str, tuple[str, dict]] = {
    "mixtral": ("Mixtral", dict(SHAPE, num_local_experts=4, num_experts_per_tok=2)),
    "qwen2_moe": ("Qwen2Moe", dict(SHAPE, **EXPERTS, shared_expert_intermediate_size=32)),
    "qwen3_moe": ("Qwen3Moe", dict(SHAPE, **EXPERTS)),
    "olmoe": ("Olmoe", dict(SHAPE, num_experts=4, num_experts_per_tok=2)),
    "granitemoe": (
        "GraniteMoe",
        dict(SHAPE, num_local_experts=4, num_experts_per_tok=2, logits_scaling=3.0, residual_multiplier=0.4),
    ),
    "gpt_oss": ("GptOss", dict(SHAPE, num_local_experts=4, num_experts_per_tok=2, sliding_window=6)),
    "deepseek_v3": ("DeepseekV3", dict(DEEPSEEK_V3, first_k_dense_replace=1)),
    "glm4_moe": (
        "Glm4Moe",
        dict(SHAPE, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, first_k_dense_replace=1),
    ),
    "ernie4_5_moe": (
        "Ernie4_5_Moe",
        dict(SHAPE, moe_num_experts=4, moe_k=2, moe_intermediate_size=32, moe_layer_start_index=1),
    ),
}

# Shapes that stretch the idea (no final norm, branches after the FFN, recurrent layers): work, or be refused.
PER_LAYER = dict(SHAPE, sliding_window=6, hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB_SIZE)
GEMMA3N = dict(PER_LAYER, num_kv_shared_layers=0, laurel_rank=8, altup_num_inputs=2, activation_sparsity_pattern=None)
UNUSUAL: dict[str, tuple[str, dict]] = {
    "openai_gpt": ("OpenAIGPT", GPT),
    "ctrl": ("CTRL", {"vocab_size": VOCAB_SIZE, "n_embd": 48, "n_head": 4, "dff": 80, "n_positions": 512}),
    "gemma4_text": ("Gemma4Text", PER_LAYER),
    "gemma3n_text": ("Gemma3nText", GEMMA3N),
    "llama4_text": ("Llama4Text", dict(SHAPE, intermediate_size_mlp=80, num_local_experts=4)),
    "deepseek_v2": ("DeepseekV2", dict(DEEPSEEK, n_shared_experts=1, head_dim=8, first_k_dense_replace=1)),
    "phimoe": ("Phimoe", dict(SHAPE, num_local_experts=4)),
    "modernbert_decoder": ("ModernBertDecoder", SHAPE),
    "diffllama": ("DiffLlama", SHAPE),
    "jamba": ("Jamba", dict(SHAPE, attn_layer_period=3, attn_layer_offset=1, mamba_d_state=8, mamba_expand=1)),
    "recurrent_gemma": ("RecurrentGemma", dict(SHAPE, lru_width=48, attention_window_size=64)),
    "minimax": ("MiniMax", dict(SHAPE, num_local_experts=4)),
    "falcon_h1": ("FalconH1", dict(SHAPE, mamba_d_ssm=48, mamba_n_heads=4, mamba_d_head=12, mamba_d_state=8)),
}

T5 = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 80,
    "num_layers": 3,  # transformers 5.24's `generate` fails where the decoder has another number
    "num_heads": 4,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "decoder_start_token_id": PAD,
}
BART = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 48,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "decoder_start_token_id": EOS,
}
CAUSAL_BART = dict(BART, decoder_ffn_dim=80, is_decoder=True)
# Decoders that count their positions themselves: from the padding on, or from another number than 0 (RoBERTa).
OWN_POSITIONS: dict[str, tuple[str, dict]] = {
    "bart_causal": ("Bart", CAUSAL_BART),
    "pegasus_causal": ("Pegasus", CAUSAL_BART),
    "roformer": ("RoFormer", dict(FULL_HEADS, is_decoder=True)),
    "roberta": ("Roberta", dict(FULL_HEADS, is_decoder=True)),
}
GEMMA_ENCODER = dict(SHAPE, sliding_window=6, query_pre_attn_scalar=12, num_hidden_layers=2)

# Decoders of three layers; encoders of two, but for T5.
ENCODER_DECODERS: dict[str, tuple[str, dict]] = {
    "t5": ("T5", T5),
    "t5_gated": ("T5", dict(T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "mt5": ("MT5", T5),
    "bart": ("Bart", BART),
    "mbart": ("MBart", dict(BART, scale_embedding=True)),
    "pegasus": ("Pegasus", BART),
    "t5gemma": ("T5Gemma", {"vocab_size": VOCAB_SIZE}),
}

# Families whose attention has no sdpa implementation in transformers 5.23.
EAGER_ONLY = {"bloom", "codegen", "gemma2", "gpt_neo", "gpt_oss", "gptj", "mpt", "openai_gpt", "roformer", "xglm"}


@torch.no_grad()
def randomize(model: PreTrainedModel) -> PreTrainedModel:
    """Draw the parameters anew: matrices keep the scale of a signal, vectors leave their initial 0 or 1."""
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape)
        if parameter.ndim > 1:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(0.2 * noise)
    return model


def build(
    name: str, *, dtype: torch.dtype = torch.float32, attn: str = "sdpa", seed: int = 0, layers: int = 3
) -> PreTrainedModel:
    """A random model of family `name` in evaluation mode; the same numbers for every `attn` and, rounded, `dtype`."""
    prefix, arguments = {**DENSE, **MIXTURES, **UNUSUAL, **OWN_POSITIONS}[name]
    config_class = getattr(transformers, f"{prefix}Config")
    depth = {config_class.attribute_map.get("num_hidden_layers", "num_hidden_layers"): layers}
    if "decoder_ffn_dim" in arguments:
        depth = {"decoder_layers": layers}
    if prefix == "GPTNeo":
        depth["attention_types"] = [[["global", "local", "global"], layers // 3]]
    attn = "eager" if name in EAGER_ONLY else attn
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config_class(**arguments, **depth), attn_implementation=attn)
        return randomize(model).to(dtype).eval()


def build_encoder_decoder(name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A random encoder-decoder of family `name` in evaluation mode."""
    prefix, arguments = ENCODER_DECODERS[name]
    sizes: dict = {} if prefix in ("T5", "MT5") else {"decoder_layers": 3}
    if prefix == "T5Gemma":
        sizes = {"encoder": dict(GEMMA_ENCODER), "decoder": dict(GEMMA_ENCODER, num_hidden_layers=3, hidden_size=32)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = getattr(transformers, f"{prefix}Config")(**arguments, **sizes)
        model = randomize(AutoModelForSeq2SeqLM.from_config(config)).to(dtype).eval()
    if prefix == "T5Gemma":
        model.generation_config.decoder_start_token_id = BOS
    forced = {"bart": BOS, "mbart": 7}  # as in their checkpoints: begin-of-text, a language
    model.generation_config.forced_bos_token_id = forced.get(name)
    model.generation_config.forced_eos_token_id = EOS if name in (*forced, "pegasus") else None
    return model


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {name: partial(build, name) for name in [*DENSE, *MIXTURES]}


def build_refused(name: str) -> PreTrainedModel:
    """A model that FastMem has to refuse: no FFN (mamba), an encoder (bert)."""
    small = {"vocab_size": VOCAB_SIZE, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    if name == "mamba":
        return transformers.MambaForCausalLM(transformers.MambaConfig(**small, state_size=8)).eval()
    if name == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(**small, intermediate_size=80)).eval()
    raise KeyError(name)


REFUSED = ["mamba", "bert"]
