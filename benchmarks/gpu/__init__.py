"""What a GPU is wanted for, in one script that needs torch, timm and one folder; and what makes that folder."""
