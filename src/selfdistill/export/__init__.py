"""What a run leaves for others: its backbone in other libraries' formats, its features of any images, the nearest of them."""
