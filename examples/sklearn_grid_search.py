"""A scikit-learn pipeline in a grid search with two worker processes.

The only line for the record is ``with track(search):``; it sees inside every estimator. On
scikit-learn 1.9 and later ``search.set_callbacks(SklearnCallback())`` does without it.
"""

from __future__ import annotations

from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tachograph.callbacks import track


def main() -> None:
    """Search sizes of a network behind two sizes of a projection."""
    features, target = load_digits(return_X_y=True)
    pipeline = make_pipeline(
        StandardScaler(),
        PCA(random_state=7),
        MLPClassifier(early_stopping=True, random_state=7),
    )
    search = GridSearchCV(
        pipeline,
        {"pca__n_components": [16, 32], "mlpclassifier__hidden_layer_sizes": [(32,), (64,)]},
        cv=3,
        n_jobs=2,
    )
    with track(search, name="digits, grid search"):
        search.fit(features, target)


if __name__ == "__main__":
    main()
