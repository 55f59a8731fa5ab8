#!/usr/bin/env bash
# Generate with the default model, beside plain autoregressive decoding; then say what runs where.
set -euo pipefail
dynaspec generate --max-new-tokens 48 --compare "The capital of France is"
dynaspec doctor
