"""What fills a folder with latents or text embeddings, once, by any number of processes.

Begin with encode.py; the commands are cache_latents.py and encode_prompts.py beside this folder.
"""
