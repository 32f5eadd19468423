"""What the tasks of ``tasks.py`` do: a function a task, words in, text or an exit status out.

Nothing is printed here but by commands that show something while it goes on (progress, a console, a guest's output).
"""
