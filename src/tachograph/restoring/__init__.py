"""The code, the command and the environment of a recorded run, made again."""
