"""Probabilities keep their order in the table, however near to 0 or 1 they are."""

from itertools import pairwise

import numpy as np

from monai_mil.savers.prediction import probability_text


def test_probabilities_keep_their_order_as_text():
    near = np.geomspace(1e-15, 0.5, 200)
    prob = np.concatenate([near, 1 - near[::-1]])
    prob = np.unique(prob)
    texts = [float(probability_text(value)) for value in prob]
    assert all(one < other for one, other in pairwise(texts))
    np.testing.assert_allclose(texts, prob, rtol=1e-5)
    np.testing.assert_allclose(1 - np.array(texts)[prob > 0.5], 1 - prob[prob > 0.5], rtol=1e-2)


def test_plain_numbers_stay_plain():
    assert [probability_text(value) for value in (0.0, 0.25, 0.95, 1.0)] == ["0", "0.25", "0.95", "1"]
