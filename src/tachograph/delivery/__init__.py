"""From journals into stores: exactly once, at the pace of each store, whatever fails."""
