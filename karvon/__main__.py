from karvon.cli import main

main()
