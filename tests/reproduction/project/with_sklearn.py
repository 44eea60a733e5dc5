"""A pipeline, and predictions."""

import data
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

import tachograph
from tachograph.callbacks import track

(x, y), (x_val, y_val) = data.load()
pipeline = make_pipeline(
    MinMaxScaler((0, 1)),
    SGDClassifier(max_iter=5, tol=None, alpha=0.1 * data.RATE, random_state=data.SEED),
)
with tachograph.start_run(name="pipeline") as run:
    run.log_data(x, "train")
    with track(pipeline):
        pipeline.fit(x, y)
    run.log({"accuracy": pipeline.score(x_val, y_val)})
    run.log_outcome(pipeline.decision_function(x_val), "predictions")
