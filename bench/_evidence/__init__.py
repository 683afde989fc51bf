"""Parts of `bench/study_evidence.py`: variants, trials, archives, and the tables and plots made from them."""
