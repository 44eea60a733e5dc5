"""Running a recorded run again, and saying whether the results are the same.

`plan` makes the command ready, `interpreter` what it runs with, `evidence` compares what was
measured, `verdict` says what that means, `reproduce` does all of it in order.
"""
