"""The flags of the command line: their types, and their texts in --help."""

import argparse
import math

from lmjax.cli.parser import Flag


def parse_integer(text: str) -> int:
    """Parse an integer."""
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"={text}: must be an integer") from error


def parse_count(text: str) -> int:
    """Parse an integer greater than 0."""
    count = parse_integer(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"={text}: must be >= 1")
    return count


def parse_number(text: str) -> float:
    """Parse a number."""
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"={text}: must be a number") from error


def parse_seconds(text: str) -> float:
    """Parse a time greater than 0."""
    seconds = parse_number(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"={text}: must be > 0")
    return seconds


def parse_amount(text: str) -> float:
    """Parse a number greater than 0, such as 15e12."""
    amount = parse_number(text)
    if not 0 < amount < math.inf:
        raise argparse.ArgumentTypeError(f"={text}: must be > 0")
    return amount


def parse_step(text: str) -> int | str:
    """Parse a step: a number, or "best"."""
    if text == "best":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"={text}: must be the number of a step, or best"
        ) from error


def parse_step_range(text: str) -> range:
    """Parse FIRST:COUNT as the steps FIRST, FIRST + 1, ...; steps count from 1."""
    try:
        first, count = (int(part) for part in text.split(":"))
    except ValueError:
        first = count = 0
    if first < 1 or count < 1:
        raise argparse.ArgumentTypeError(
            f"={text}: must be FIRST:COUNT, both at least 1, as in 20:5"
        )
    return range(first, first + count)


def parse_job(text: str) -> tuple[int, int]:
    """Parse I/N as job I of N; jobs count from 0."""
    try:
        index, num_jobs = (int(part) for part in text.split("/"))
    except ValueError:
        index = num_jobs = 0
    if not 0 <= index < num_jobs:
        raise argparse.ArgumentTypeError(
            f"={text}: must be I/N with I from 0 to N - 1, as in 0/4"
        )
    return index, num_jobs


EXPERIMENT = Flag(
    "--config",
    "the experiment file; ARG is passed to its get_config()",
    required=True,
    metavar="FILE.py[:ARG]",
)
RUN = Flag(
    "--workdir",
    "the directory of the run; created if missing, resumed if it holds this run",
    required=True,
    metavar="DIR",
)
PROFILE = Flag(
    "--profile",
    "write a profiler trace of COUNT steps to WORKDIR/profile, as in 20:5",
    type=parse_step_range,
    default=range(0),
    metavar="FIRST:COUNT",
)
DISTRIBUTED = Flag(
    "--distributed",
    "join the other processes of a job of mpirun, Slurm, Cloud TPUs or Kubernetes",
    action="store_true",
)
JOIN_TIMEOUT = Flag(
    "--join_timeout",
    "seconds for which processes wait for each other at the start; default: 120",
    type=parse_seconds,
    metavar="SECONDS",
)
JOB = Flag(
    "--job",
    "encode only share I of N (I from 0), to run N jobs in parallel",
    type=parse_job,
    default=(0, 1),
    metavar="I/N",
)
DEVICES = Flag(
    "--devices",
    "devices to shard over, which need not exist; default: the mesh of the config",
    type=parse_integer,
    default=0,
    metavar="N",
)
TOPOLOGY = Flag(
    "--topology",
    "the machine, which need not be there: tpu:v5p:4x4x4, tpu:v6e:4x4*2 (two slices), "
    "gpu:h200:8x8 (nodes x GPUs), cpu:8",
    required=True,
    metavar="NAME",
)
SEARCH = Flag(
    "--search",
    "try meshes, remat, microbatches and attention, and print the fastest that fit",
    action="store_true",
)
FIT = Flag("--fit", "find the largest batch that fits", action="store_true")
TOKENS = Flag(
    "--tokens",
    "to train on, as in 15e12; default: those of the config's steps",
    type=parse_amount,
    metavar="N",
)
PRICE = Flag(
    "--price",
    "dollars for an hour of one chip",
    type=parse_amount,
    metavar="DOLLARS",
)
JSON = Flag("--json", "print one JSON object", action="store_true")
PLOT = Flag(
    "--plot", "also write a picture of memory and time", default="", metavar="FILE.png"
)
WORKDIR = Flag(
    "--workdir", "the directory of a trained run", required=True, metavar="DIR"
)
STEP = Flag(
    "--step",
    "the checkpoint: a step, or best (by checkpoint.best_metric); default: the latest",
    type=parse_step,
    metavar="N|best",
)
PROMPT = Flag(
    "--prompt",
    "the text to continue; for an encoder-decoder, its source",
    required=True,
    metavar="TEXT",
)
MAX_TOKENS = Flag(
    "--max_tokens",
    "the most tokens to generate; default: 64, or what the model's max_length allows",
    type=parse_integer,
    metavar="N",
)
SEED = Flag(
    "--seed", "of sampling; default: 0", type=parse_integer, default=0, metavar="N"
)
DRAFT = (
    Flag(
        "--draft",
        "write with the help of the smaller model of this workdir, which has the same "
        "tokenizer; greedy text stays the same (speculative decoding)",
        metavar="DIR",
    ),
    Flag(
        "--num_draft",
        "tokens that it drafts at a time; default: 4",
        type=parse_count,
        default=4,
        metavar="N",
    ),
)
# Those of `DecodingConfig`; where one is not given, the workdir's own setting holds.
DECODING = (
    Flag(
        "--temperature",
        "divide the logits by T before sampling, 0: greedy; default: that of the run "
        "(task.write.temperature, 0.8 for models of running text)",
        type=parse_number,
        metavar="T",
    ),
    Flag(
        "--top_k",
        "sample from the K most likely tokens, 0: all",
        type=parse_integer,
        metavar="K",
    ),
    Flag(
        "--top_p",
        "nucleus sampling: sample from the most likely tokens that together have "
        "probability P, 1: all",
        type=parse_number,
        metavar="P",
    ),
    Flag(
        "--min_p",
        "sample from the tokens with at least P of the most likely one's probability",
        type=parse_number,
        metavar="P",
    ),
    Flag(
        "--num_beams",
        "beam search with N beams, 1: sampling",
        type=parse_integer,
        metavar="N",
    ),
    Flag(
        "--length_penalty",
        "beam search: score texts by log P / length ** X, so that a larger X prefers "
        "longer texts",
        type=parse_number,
        metavar="X",
    ),
    Flag(
        "--early_finish",
        "beam search: stop once N texts have ended",
        action="store_const",
        const=True,
    ),
    Flag(
        "--min_tokens",
        "tokens to generate before the text may end",
        type=parse_integer,
        metavar="N",
    ),
    Flag(
        "--no_repeat_ngram",
        "do not generate any sequence of N tokens twice, 0: no limit",
        type=parse_integer,
        metavar="N",
    ),
    Flag(
        "--repetition_penalty",
        "make logits of tokens that the text has worse by a factor",
        type=parse_number,
        metavar="X",
    ),
    Flag(
        "--stop",
        "end the text before the first occurrence of TEXT; may be given several times",
        action="append",
        metavar="TEXT",
    ),
)
TEXTS = Flag(
    "--input",
    "a text file; each line is a text, or CONTEXT<TAB>TEXT",
    required=True,
    metavar="FILE",
)
EOS = Flag("--eos", "also score the end of each text", action="store_true")
PER_TOKEN = Flag(
    "--per_token",
    "also print the log-probability of each token, and whether it is the most likely",
    action="store_true",
)
LONG_TEXTS = (
    Flag("--whole", "the file is one text, not one for each line", action="store_true"),
    Flag(
        "--window",
        "how many tokens of a longer text the model reads at once; default: as many as "
        "it can",
        type=parse_count,
        metavar="TOKENS",
    ),
    Flag(
        "--stride",
        "how many tokens of a window are scored, given the others; default: half",
        type=parse_count,
        metavar="TOKENS",
    ),
)
EXAMPLES = Flag(
    "--input", "the file of examples or texts", required=True, metavar="FILE"
)
OUTPUT = Flag(
    "--output",
    "the file of predictions: one JSON object per example",
    required=True,
    metavar="FILE",
)
WORKDIRS = Flag(
    "workdirs",
    "the directories of two runs or more; each is compared with the first",
    nargs="+",
    metavar="DIR",
)
HELD_OUT = Flag(
    "--input",
    "a held-out text for language models, documents apart by blank lines; else a file "
    "of labelled examples",
    required=True,
    metavar="FILE",
)
COMPARISON = Flag(
    "--output",
    "also write a picture (.png, .pdf, .svg) or a page (.html)",
    default="",
    metavar="FILE",
)
SYSTEM = Flag(
    "--system", "what the system says before the first turn", default="", metavar="TEXT"
)
CHAT_TEMPLATE = Flag(
    "--chat_template",
    "own (the tokenizer's), chatml, llama3, zephyr or plain; default: that of the run "
    "(tokenizer.chat_template)",
    metavar="NAME",
)
RUNS = Flag("runs", "the directories of runs", nargs="+", metavar="WORKDIR")
REPORT = Flag(
    "--output",
    "the page to write (.html)",
    required=True,
    metavar="FILE",
)
PREDICTIONS = Flag(
    "--predictions",
    "a file that lmjax predict --keep=input has written of examples with labels, for a "
    "confusion matrix and the worst examples (may be given several times)",
    action="append",
    default=[],
    metavar="FILE",
)
HARNESS_TASKS = Flag(
    "--tasks",
    "tasks of lm-evaluation-harness, separated by commas",
    required=True,
    metavar="NAME,...",
)
INCLUDE_PATH = Flag(
    "--include_path",
    "a directory of task files (YAML) of your own",
    metavar="DIR",
)
NUM_FEWSHOT = Flag(
    "--num_fewshot",
    "examples before each question; default: as the task says",
    type=parse_integer,
    metavar="N",
)
LIMIT = Flag(
    "--limit",
    "judge the first N questions of each task; default: all",
    type=parse_count,
    metavar="N",
)
RESULTS = Flag("--output", "also write the results as JSON", metavar="FILE")
FORMAT = Flag(
    "--format",
    "of the input: jsonl, tsv, csv, parquet, arrow, conll, props, parallel, squad or "
    "text; default: by the suffix of the file, else the run's data.source",
    default="",
    metavar="NAME",
)
SKIP_BAD = Flag(
    "--skip_bad",
    'write {"error": ...} for an example that cannot be used, and continue',
    action="store_true",
)
KEEP = Flag(
    "--keep",
    "fields of an example that its prediction has, too, separated by commas; input: "
    "the whole example; default: id, where there is one",
    default="id",
    metavar="FIELD,...|input",
)
EXPLAIN = Flag(
    "--explain",
    "also write what tokens each prediction rests on, as its explanation: "
    "integrated_gradients, leave_one_out, attention_rollout, attention or logit_lens",
    default="",
    metavar="METHOD",
)
HF_SOURCE = Flag(
    "--from",
    "a Hugging Face directory, the name of a model on the hub, or a file of llama.cpp",
    dest="source",
    required=True,
    metavar="DIR|NAME|FILE.gguf",
)
IMPORTED = Flag("--workdir", "the directory to create", metavar="DIR")
DRY_RUN = Flag(
    "--dry_run",
    "say what would be imported and what would be dropped, and write nothing",
    action="store_true",
)
IGNORE_GENERATION = Flag(
    "--ignore_generation",
    "import a model although settings of its generation_config.json are not supported",
    action="store_true",
)
BASE = Flag(
    "--base",
    "of PEFT's adapters: the workdir or Hugging Face model that they belong to; "
    "default: the directory that they name",
    default="",
    metavar="DIR|NAME",
)
HF_TARGET = Flag(
    "--to",
    "the directory to create; or a file: .gguf for llama.cpp; word vectors: .vec and "
    ".bin as word2vec's text and binary form, .txt as GloVe's",
    required=True,
    metavar="DIR|FILE",
)
PUSH = Flag(
    "--push",
    "also send the directory to the Hugging Face hub, with a model card",
    default="",
    metavar="ORG/NAME",
)
PRIVATE = Flag(
    "--private",
    "of --push: the model on the hub is for its owners alone",
    action="store_true",
)
DTYPE = Flag(
    "--dtype",
    "of the weights: float32, bfloat16 or float16, in a .gguf also q8_0 and q4_0; "
    "default: float32, and of a quantized model its own codes",
    default=None,
    metavar="DTYPE",
)
ADAPTERS = Flag(
    "--adapters",
    "export only the LoRA adapters, for PEFT; default: merge them into the weights",
    action="store_true",
)
COMPRESSED = Flag("--to", "the workdir to create", required=True, metavar="DIR")
PRUNE = Flag(
    "--prune",
    "which weights become 0: magnitude, global_magnitude, wanda or sparsegpt, and the "
    "fraction or N:M (2 of each 4 stay), as in wanda:2:4; or which parts are left out: "
    "heads, mlp, layers or encoder_layers, and the fraction that is left out or the "
    "number that is left, as in layers:4",
    metavar="METHOD:AMOUNT",
)
LOW_RANK = Flag(
    "--low_rank",
    "make each matrix a product of two thin ones, which have this fraction of its "
    "weights; with --calibrate the outputs on that text change least. PATTERN names "
    "matrices, as in 0.5:mlp.*,attention.out",
    metavar="FRACTION[:PATTERN,...]",
)
QUANTIZE = (
    Flag(
        "--quantize",
        "round the matrices of the blocks to int8, fp8, int4:GROUP or nf4:GROUP, as in "
        "int4:64 (inputs that share a scale)",
        metavar="FORMAT",
    ),
    Flag(
        "--method",
        "how they are rounded: rtn, each weight by itself (the default); or by what "
        "they read of --calibrate",
        metavar="NAME",
    ),
    Flag(
        "--embeddings",
        "of the quantized model: int8 (the default) or float",
        metavar="FORMAT",
    ),
    Flag(
        "--activations",
        "what the matrices read: float (the default), or int8, rounded token by token",
        metavar="FORMAT",
    ),
    Flag(
        "--cache",
        "keys and values of earlier tokens in decoding: float (the default), or int8, "
        "each head of each token by its own scale",
        metavar="FORMAT",
    ),
)
CALIBRATE = Flag(
    "--calibrate",
    "a text that the model reads, so that what matters to it can be told; for an "
    "encoder-decoder lines SOURCE<TAB>TARGET",
    metavar="FILE",
)
WINDOWS = Flag(
    "--windows",
    "how many windows of 512 tokens of --calibrate it reads, or lines; default: 64",
    type=parse_count,
    metavar="N",
)
CLEAN = (
    Flag(
        "--input",
        "the corpus: a glob or a directory of files as data.source reads them; how is "
        "told by their suffixes, or by --config.data.source, .field, .document, "
        ".encoding, .markup, ...",
        required=True,
        metavar="PATTERN",
    ),
    Flag(
        "--output",
        "the file to write: .jsonl (with all fields of the records), or .txt with a "
        "document a line; also compressed: .gz, .zst, .xz, .bz2",
        required=True,
        metavar="FILE",
    ),
    Flag(
        "--report",
        "also write what each rule took, with examples, as JSON",
        default="",
        metavar="FILE",
    ),
    Flag(
        "--rules",
        "sets of rules: characters, gopher, gopher_repetition, c4, or none; default: "
        "all but c4",
        default="characters,gopher,gopher_repetition",
        metavar="SET,...",
    ),
    Flag(
        "--limit",
        "turn a rule on with another limit, or off, as in min_words=20 or "
        "min_stop_words=off (may be given several times)",
        action="append",
        default=[],
        metavar="RULE=N|off",
    ),
    Flag(
        "--language",
        "leave out documents in other languages than these, as in en,de",
        default="",
        metavar="CODE,...",
    ),
    Flag(
        "--duplicates",
        "leave out documents that are near duplicates of earlier ones (the default), "
        "exact ones alone (exact), or none (keep)",
        default="near",
        metavar="NAME",
    ),
    Flag(
        "--similarity",
        "of near duplicates: the least share of common 5-grams of words; default: 0.8",
        type=parse_number,
        default=0.8,
        metavar="X",
    ),
    Flag(
        "--personal",
        "kinds of personal data that <KIND> replaces: email, iban, card, ip, phone, or "
        "none; default: all",
        default="email,iban,card,ip,phone",
        metavar="KIND,...",
    ),
    Flag(
        "--pattern",
        "also replace what a regular expression finds by <NAME> (may be given several "
        "times)",
        action="append",
        default=[],
        metavar="NAME=REGEX",
    ),
    Flag(
        "--decontaminate",
        "leave out documents that share --ngram words in a row with held-out files: a "
        "glob or a directory (may be given several times)",
        action="append",
        default=[],
        metavar="PATTERN",
    ),
    Flag(
        "--ngram",
        "of --decontaminate; default: 13",
        type=parse_count,
        default=13,
        metavar="N",
    ),
    Flag(
        "--skip_bad",
        "leave out, and count, documents that cannot be read",
        action="store_true",
    ),
    Flag(
        "--num_workers",
        "processes; default: one for each core",
        type=parse_integer,
        default=0,
        metavar="N",
    ),
)
