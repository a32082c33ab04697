"""How byte-level vocabularies cut text into words before merging, by the name a GGUF file gives in tokenizer.ggml.pre.

A GGUF carries only the name. The patterns here are those of the models' own tokenizer.json files; llama.cpp's
llama-vocab.cpp says which names share one.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class PreTokenizer:
    """splits: regular expressions (Oniguruma) applied in turn, each isolating its matches. gpt2: GPT-2's own last.

    nfc: compose characters first. ignore_merges: a word that is a token is taken whole. adds_bos: where the file does
    not say.
    """

    splits: tuple[str, ...] = ()
    gpt2: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAMEL = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_CAMEL_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_CJK = "[一-龥ࠀ-一가-퟿]+"
# The letters with case that deepseek-llm's tokenizer.json lists; escaped where Unicode normalisation, which editors
# and viewers like to apply, would give another letter.
_CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ"
    "\u1f5f-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮ\u2cf2\u2cf3Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎ"
    "ꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)

_GPT2 = PreTokenizer(gpt2=True)
_DIGITS = PreTokenizer((r"\p{N}",), gpt2=True)
_LLAMA3 = PreTokenizer((f"{_CONTRACTION}|{_WORD}|\\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}",))
_LLAMA3_BOS = replace(_LLAMA3, ignore_merges=True, adds_bos=True)
_QWEN2 = PreTokenizer((f"{_CONTRACTION}|{_WORD}|\\p{{N}}|{_SYMBOLS}|{_SPACES}",))
_QWEN35 = PreTokenizer(
    (
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
        ),
    ),
    nfc=True,
)
_TEKKEN = PreTokenizer(
    (f"{_CAMEL[0]}|{_CAMEL[1]}|\\p{{N}}|{_CAMEL_SYMBOLS}|{_SPACES}",), ignore_merges=True, adds_bos=True
)
_GPT4O = PreTokenizer(
    (f"{_CAMEL[0]}{_CONTRACTION}?|{_CAMEL[1]}{_CONTRACTION}?|\\p{{N}}{{1,3}}|{_CAMEL_SYMBOLS}|{_SPACES}",),
    ignore_merges=True,
)
_DEEPSEEK_LLM = PreTokenizer(("[\r\n]", rf"\s?[{_CASED}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _CJK, r"\p{N}"))
_DEEPSEEK_CODER = PreTokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"))
_DEEPSEEK_V3 = PreTokenizer(
    (
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        (
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
            rf"|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
        ),
    )
)

_NAMES = (
    # "default", or no name, is what files say that were made before there were names.
    (_GPT2, "default gpt-2 mpt olmo jais phi-2 exaone4 gigachat mellum trillion granite-docling modern-bert a.x-4.0"),
    (_DIGITS, "smollm starcoder refact command-r codeshell exaone minerva-7b"),
    (_LLAMA3_BOS, "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2"),
    (_LLAMA3, "dbrx smaug-bpe chatglm-bpe glm4"),
    (replace(_QWEN2, nfc=True), "qwen2"),
    (_QWEN2, "deepseek-r1-qwen stablelm2 hunyuan megrez kormo solar-open grok-2"),
    (_QWEN35, "qwen35"),
    (_TEKKEN, "tekken"),
    (_GPT4O, "gpt-4o llama4 kanana2"),
    (_DEEPSEEK_LLM, "deepseek-llm"),
    (_DEEPSEEK_CODER, "deepseek-coder"),
    (_DEEPSEEK_V3, "deepseek-v3 hunyuan-dense"),
)
PRE_TOKENIZERS = {name: pre for pre, names in _NAMES for name in names.split()}
