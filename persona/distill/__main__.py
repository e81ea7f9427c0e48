"""`python -m persona.distill`, which `accelerate launch` starts on each GPU."""

from persona.cli import distill_main

distill_main()
