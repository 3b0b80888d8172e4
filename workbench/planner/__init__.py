"""What each rank will hold and send under a plan, by arithmetic. Loads no tensor library and starts nothing."""
