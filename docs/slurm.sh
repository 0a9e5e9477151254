#!/bin/sh
# Converts every slide below a folder on a Slurm cluster, as a job array: each task takes its part of the slides.
#
#   sbatch --array=1-20 docs/slurm.sh SLIDES OUTPUT
#
# SLIDES is a folder, or a manifest that ends in .csv or .jsonl; OUTPUT is a folder that all nodes see. A task that was
# cut off by its time limit is sent again with the same command: what is converted already is skipped.
#SBATCH --job-name=mimic
#SBATCH --cpus-per-task=4
#SBATCH --mem=6G
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
#SBATCH --output=mimic-%A_%a.log
set -eu

slides=$1
output=$2

# Part i of n, from 1 on, whatever numbers the array has (--array=0-19 as well as 1-20).
first=${SLURM_ARRAY_TASK_MIN:-1}
part=$((${SLURM_ARRAY_TASK_ID:-1} - first + 1))
parts=${SLURM_ARRAY_TASK_COUNT:-1}

case "$slides" in
    *.csv | *.jsonl) set -- batch --manifest "$slides" ;;
    *) set -- convert "$slides" ;;
esac

# One slide at a time on all cores of the task; for many small slides --jobs "$SLURM_CPUS_PER_TASK" is faster.
# exec: the signal that Slurm sends before the end reaches mimic, which tidies up.
exec mimic "$@" -o "$output" --jobs 1 --threads "${SLURM_CPUS_PER_TASK:-1}" --shard "$part/$parts" --resume \
    --report-dir "$output/reports" --log-file "mimic-$part.txt"
