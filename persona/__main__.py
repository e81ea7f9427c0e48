"""`python -m persona` is `persona`; `accelerate launch -m persona evaluate …` uses all GPUs."""

from persona.cli import main

main()
