"""The queue: topics' names, the envelope of a request, consuming, publishing, redelivery."""
