"""What `min_avg_logprob` a checkpoint should have: it writes speech like this down, all but a few clips of it.

    python hear/bound.py CHECKPOINT MANIFEST [--keep 0.95]

The recordings are speech that the checkpoint was made for and did not learn from; what their transcripts should be is not
looked at. Prints how sure the model was and the bound; `hear/ship.py --min-avg-logprob BOUND` writes it into the checkpoint.
"""

from __future__ import annotations

import argparse
import math
import sys

import numpy as np

from aura.audio.waveform import SAMPLE_RATE
from aura.data.manifest import read_utterances
from aura.errors import AuraError, DataError
from aura.inference.engine import load
from aura.inference.transcribe import Transcript, transcribe_each
from aura.progress import audio_progress


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("manifest")
    parser.add_argument("--keep", type=float, default=0.95, help="share of the clips whose words stay")
    options = parser.parse_args()
    try:
        print(find_bound(options.checkpoint, options.manifest, options.keep))
    except (AuraError, OSError) as error:
        print(f"hear/bound.py: {error}", file=sys.stderr)
        return 2
    return 0


def find_bound(checkpoint: str, manifest: str, keep: float) -> float:
    """The bound, rounded down to hundredths.

    Raises:
        AuraError: no such checkpoint or manifest, an impossible share, or a model that heard nothing at all.
    """
    if not 0 < keep <= 1:
        raise DataError(f"--keep is {keep:g}; expected a share of the clips, e.g. 0.95")
    parts = [part for utterance in read_utterances(manifest) for part in utterance.audio]
    sources = [{"array": part.load(), "sampling_rate": SAMPLE_RATE} for part in parts]
    found: list[float] = []
    silent = 0
    engine = load(checkpoint)
    with audio_progress("listening", len(sources)) as advance:
        for _, heard in transcribe_each(engine, sources, min_avg_logprob=-math.inf, scores=True):
            advance(1, heard.seconds if isinstance(heard, Transcript) else 0.0)
            if isinstance(heard, AuraError):
                raise heard
            sure = [segment.avg_logprob for segment in heard.segments if segment.avg_logprob is not None]
            found += [min(sure)] if sure else []
            silent += not sure
    if not found:
        raise DataError(f"{checkpoint} hears no words in {manifest}; expected recordings of speech it was made for")
    middle = float(np.median(found))
    print(f"{len(found)} clips with words, {silent} without; half are surer than {middle:.3f}", file=sys.stderr)
    return math.floor(100 * float(np.quantile(found, 1 - keep, method="lower"))) / 100


if __name__ == "__main__":
    sys.exit(main())
