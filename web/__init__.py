"""What every endpoint shares: access, errors, paging, limits, the API's description."""
