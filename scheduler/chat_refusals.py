"""What vLLM, OpenAI or their clients know of a chat request and allotd does not take, each with what to do instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_MEDIA = "is not taken: messages are text, because what an image, a sound or a video costs is not known beforehand"
_GRAMMAR = "is not taken; use response_format with type json_schema"
_SERVER = "is the model server's own business and is not passed on; leave it out"
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("image_url", "video_url", "audio_url", "input_audio", "input_video", "file", "image_pil"),
            *("image_embeds", "audio_embeds", "prompt_embeds", "media_io_kwargs", "mm_processor_kwargs", "audio"),
        ),
        _MEDIA,
    ),
    **dict.fromkeys(
        (
            *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend"),
            *("guided_whitespace_pattern", "structured_outputs", "structural_tag", "grammar"),
        ),
        _GRAMMAR,
    ),
    **dict.fromkeys(
        (
            *("request_id", "session_id", "cache_salt", "kv_transfer_params", "ec_transfer_params", "vllm_xargs"),
            *("logits_processors", "mm_payload", "return_mm_kwargs", "routed_experts_prompt_start", "stream_interval"),
        ),
        _SERVER,
    ),
    "priority": "is not taken; use allotd.priority",
    "extra_body": "is what a client library unpacks; put its fields into the body themselves",
    "chat_template": "is not taken: the model's own template is used",
    "documents": "is not taken; put the documents into the messages",
    "functions": "is not taken; use tools",
    "function_call": "is not taken; use tool_choice",
    "best_of": "is not taken; set allotd.samples_max",
    "use_beam_search": "is not taken; set allotd.strategy",
    "length_penalty": "is not taken; it belongs to beam search",
    "prompt_logprobs": "is not taken; answers carry no log-probabilities",
    "logprob_token_ids": "is not taken; answers carry no log-probabilities",
    "return_tokens_as_token_ids": "is not taken; answers carry no log-probabilities",
    "return_token_ids": "is not taken; answers carry text",
    "ignore_eos": "is not taken: it would spend the whole budget on every sample",
    "min_tokens": "is not taken: a wave may have to be shorter to fit under a cap",
    "truncate_prompt_tokens": "is not taken; shorten the messages",
    "echo": "is not taken; answers do not repeat the messages",
    "bad_words": "is not taken; use logit_bias",
    "allowed_token_ids": "is not taken; use logit_bias",
    "web_search_options": "is not taken: nothing is fetched",
    "prediction": "is not taken; the model server has no use for it",
}
"""Said after the field's name."""

KNOWN_VALUES: Mapping[str, Sequence[str]] = {
    "role": ("system", "developer", "user", "assistant", "tool", "function"),
    "type": ("text", "refusal"),
    "tools.type": ("function",),
    "tool_choice.type": ("function",),
    "tool_calls.type": ("function",),
    "response_format.type": ("text", "json_object", "json_schema"),
    "tool_choice": ("none", "auto", "required"),
    "reasoning_effort": ("none", "minimal", "low", "medium", "high", "xhigh", "max"),
    "service_tier": ("auto", "default", "flex", "priority"),
    "modalities": ("text",),
}
"""The values of fields that take only a few, by the end of the field's path without its places in lists."""
