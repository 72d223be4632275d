"""What `min_avg_logprob` a checkpoint should have: it writes speech like this down, all but a few clips of it.

    python hear/bound.py CHECKPOINT MANIFEST [--keep 0.95] [--quiet MANIFEST ...] [--spare 0]

The recordings are speech that the checkpoint was made for and did not learn from; what their transcripts should be is not
looked at. Of a checkpoint that writes no lone word down (`lone_words` in its configuration) such words count nowhere. With
`--quiet`, clips in which nothing is said in English, the bound is raised until none of them has words, or as many as
`--spare` says: one that is as sure as speech ever is would else leave none of it. Prints how sure the model was and the
bound; `hear/ship.py --min-avg-logprob BOUND` writes it into the checkpoint.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence

import numpy as np

from aura.audio.waveform import SAMPLE_RATE
from aura.data.manifest import read_utterances
from aura.errors import AuraError, DataError
from aura.inference.confidence import sureness
from aura.inference.engine import Engine, load
from aura.inference.transcribe import Transcript, transcribe_each
from aura.progress import audio_progress


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("manifest")
    parser.add_argument("--keep", type=float, default=0.95, help="share of the clips whose words stay")
    parser.add_argument(
        "--quiet", nargs="+", default=[], help="manifests of clips without English: none may have words"
    )
    parser.add_argument("--spare", type=int, default=0, help="how many of these may have words all the same")
    options = parser.parse_args()
    try:
        print(find_bound(options.checkpoint, options.manifest, options.keep, options.quiet, options.spare))
    except (AuraError, OSError) as error:
        print(f"hear/bound.py: {error}", file=sys.stderr)
        return 2
    return 0


def find_bound(checkpoint: str, manifest: str, keep: float, quiet: Sequence[str] = (), spare: int = 0) -> float:
    """The bound in hundredths: rounded down for speech, up for what nobody said.

    Raises:
        AuraError: no such checkpoint or manifest, an impossible share, or a model that heard nothing at all.
    """
    if not 0 < keep <= 1:
        raise DataError(f"--keep is {keep:g}; expected a share of the clips, e.g. 0.95")
    if spare < 0:
        raise DataError(f"--spare is {spare}; expected a number of clips, e.g. 1")
    engine = load(checkpoint)
    said = all_of(engine, manifest, min)
    if not said:
        raise DataError(f"{checkpoint} hears no words in {manifest}; expected recordings of speech it was made for")
    print(f"half of them are surer than {float(np.median(said)):.3f}", file=sys.stderr)
    bound = math.floor(100 * float(np.quantile(said, 1 - keep, method="lower"))) / 100
    invented = sorted((sure for clips in quiet for sure in all_of(engine, clips, max)), reverse=True)
    if invented:
        print(f"the surest: {', '.join(f'{sure:.3f}' for sure in invented[: spare + 1])}", file=sys.stderr)
    if invented[spare:]:
        bound = max(bound, min(0.0, (math.floor(100 * invented[spare]) + 1) / 100))
    kept = sum(each >= bound for each in said)
    print(f"the bound keeps the words of {kept} of {len(said)} clips of {manifest}", file=sys.stderr)
    return bound


def all_of(engine: Engine, manifest: str, of: Callable[[list[float]], float]) -> list[float]:
    """`sureness` of each transcript that has words, of its least (min) or most (max) sure segment."""
    parts = [part for utterance in read_utterances(manifest) for part in utterance.audio]
    sources = [{"array": part.load(), "sampling_rate": SAMPLE_RATE} for part in parts]
    counts = engine.model.config.lone_words
    found: list[float] = []
    with audio_progress("listening", len(sources)) as advance:
        for _, heard in transcribe_each(engine, sources, min_avg_logprob=-math.inf, lone_words=counts, scores=True):
            advance(1, heard.seconds if isinstance(heard, Transcript) else 0.0)
            if isinstance(heard, AuraError):
                raise heard
            scored = [(segment.text, segment.avg_logprob) for segment in heard.segments]
            sure = [sureness(text, average) for text, average in scored if average is not None]
            found += [of(sure)] if sure else []
    print(f"{manifest}: {len(found)} clips with words, {len(sources) - len(found)} without", file=sys.stderr)
    return found


if __name__ == "__main__":
    sys.exit(main())
