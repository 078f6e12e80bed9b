#!/usr/bin/env bash
# The paper's four tables and the suite of data sets for Llama-3-8B-Instruct and Qwen3-8B, on one GPU of 40 GB or more.
#
#     bash examples/one_gpu.sh [FOLDER]        default: one_gpu
#
# Every command continues where it stopped, so start the script again after an interruption. It needs access to the
# gated model meta-llama/Meta-Llama-3-8B-Instruct (`hf auth login`), 60 GB of disk, and for one of the paper's seven
# tasks the file FOLDER/wikihowAll.csv of mahnazkoupaee/WikiHow-Dataset; without it that task is left out.
#
# Hours, computed and not measured: with the operations and bytes of docs/results/performance.md at this shape (D 4096, F 14336,
# V 128256, 8 B weights in bfloat16), on an H100 whose products run at 40 % of 989 TFLOP/s and whose memory at 60 % of
# 3.35 TB/s:
#     memorizing N tokens   steps * (N (4 D V + 14 D F) / 396e12 + 28 * 3 D F / 2.0e12) + 16e9 N / 396e12 s
#     an answer of T tokens 16e9 (N + 60) / 396e12 + T (16e9 / 2.0e12 / 16 + 6 D F / 2.0e12 with a memory) s, in batches
#                           of 16
#     paper: 16,936 questions of 200 to 1,300 tokens x 7 methods, 9,000 summaries x 6   3.0 h
#     suite: 50,000 questions of 150 to 1,500 tokens x 11 methods                         4.3 h
# That is 15 hours for both models. This leaves out the time that Python needs for every layer: expect 30 to 45. The first
# two commands for each model measure 8 examples of every task and print the hours on your machine.
#
# What the figures are not: the priors of ClashEval's file are those of Llama-3-8B, so for Qwen3 its last three scores
# say nothing; CUB's file was chosen by what Qwen2.5-7B remembers. Qwen3 is asked not to think, and all its runs have one
# recipe, from `fastmem calibrate`, since the paper's recipes are those of Llama-3.

set -euo pipefail
folder=${1:-one_gpu}
data=$folder/data
mkdir -p "$data/confiqa" "$folder/models"

pip install --quiet "$(dirname "$0")/..[eval]" huggingface_hub

download() { # download URL FILE: nothing if the file is there; whole or not at all
  [ -e "$2" ] || { curl --fail --location --silent --show-error --output "$2.part" "$1" && mv "$2.part" "$2"; } ||
    echo "note: $1 could not be downloaded; without $2 its task is left out." >&2
}
github=https://github.com
for part in QA MR MC; do
  download "$github/byronBBL/Context-DPO/raw/HEAD/ConFiQA/ConFiQA-$part.json" "$data/confiqa/ConFiQA-$part.json"
done
download "$github/kevinwu23/StanfordClashEval/raw/HEAD/data/model_responses/llama3.pqt" "$data/clasheval.pqt"
download https://huggingface.co/datasets/copenlu/cub-counterfact/resolve/main/qwen2_5_7b_test.jsonl "$data/cub.jsonl"
# NoMIRACL's files in English, of the commit that had parquet files. The other data sets come from the hub.
nomiracl=https://huggingface.co/datasets/miracl/nomiracl/resolve/3264b524d273d088c0f2bf94c024851a1f77387c/data/english
mkdir -p "$data/nomiracl"
for part in relevant non_relevant; do
  name=test.$part-00000-of-00001.parquet
  download "$nomiracl/$name" "$data/nomiracl/$name"
done

# Qwen3 thinks before it answers unless its chat template is told not to.
hf download --quiet Qwen/Qwen3-8B --local-dir "$folder/models/Qwen3-8B" >/dev/null
python - "$folder/models/Qwen3-8B" <<'PYTHON'
import sys

from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
off = "{%- set enable_thinking = false %}"
if not tokenizer.chat_template.startswith(off):
    tokenizer.chat_template = off + tokenizer.chat_template
    tokenizer.save_pretrained(sys.argv[1])
PYTHON

wikihow=()
[ ! -e "$folder/wikihowAll.csv" ] || wikihow=(--data "wikihow=$folder/wikihowAll.csv")

tables() { # tables NAME MODEL [RECIPE FLAGS]
  local runs=$folder/$1 model=$2
  shift 2
  fastmem paper --model "$model" --dtype bfloat16 "$@" "${wikihow[@]}" --limit 8 --output "$runs/cost-paper"
  fastmem suite --model "$model" --dtype bfloat16 "$@" --data "$data" --limit 8 --output "$runs/cost-suite"
  fastmem paper --model "$model" --dtype bfloat16 "$@" "${wikihow[@]}" --paper-rows --output "$runs/paper"
  fastmem suite --model "$model" --dtype bfloat16 "$@" --data "$data" --output "$runs/suite"
}

tables llama-3-8b meta-llama/Meta-Llama-3-8B-Instruct

recipe=$folder/qwen3-8b.json
[ -e "$recipe" ] || fastmem calibrate --model "$folder/models/Qwen3-8B" --dtype bfloat16 --output "$recipe"
tables qwen3-8b "$folder/models/Qwen3-8B" --recipe "$recipe"

echo "The reports: $folder/*/paper/report.html and $folder/*/suite/report.html"
