"""How near texts are to the right ones: BLEU, chrF, ROUGE and exact match."""

from __future__ import annotations

from collections.abc import Sequence

from evspec_ros.errors import EvspecError

REMEDY = "Scoring texts needs sacrebleu and rouge-score: pip install sacrebleu rouge-score."


def score_texts(texts: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU and chrF (0 to 100), mean ROUGE-1 and ROUGE-L (F1, 0 to 1), and the share of exact matches.

    Raises EvspecError where the libraries are missing.
    """
    try:
        import sacrebleu
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise EvspecError(REMEDY) from error
    scorer = RougeScorer(["rouge1", "rougeL"])
    rouges = [scorer.score(answer, text) for text, answer in zip(texts, answers, strict=True)]
    count = max(len(rouges), 1)
    return {
        "bleu": round(sacrebleu.corpus_bleu(list(texts), [list(answers)]).score, 3),
        "chrf": round(sacrebleu.corpus_chrf(list(texts), [list(answers)]).score, 3),
        "rouge1": round(sum(one["rouge1"].fmeasure for one in rouges) / count, 4),
        "rougeL": round(sum(one["rougeL"].fmeasure for one in rouges) / count, 4),
        "exact": round(sum(t == a for t, a in zip(texts, answers, strict=True)) / count, 4),
    }
