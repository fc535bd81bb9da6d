//! Messages of `eventbus.v1.PubSub`, by the field numbers of Salesforce's published `pubsub_api.proto`.

/// Where a subscription starts.
pub(crate) mod preset {
    pub(crate) const LATEST: i32 = 0;
    pub(crate) const EARLIEST: i32 = 1;
    pub(crate) const CUSTOM: i32 = 2;
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TopicRequest {
    #[prost(string, tag = "1")]
    pub(crate) topic_name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TopicInfo {
    #[prost(string, tag = "1")]
    pub(crate) topic_name: String,
    #[prost(string, tag = "2")]
    pub(crate) tenant_guid: String,
    #[prost(bool, tag = "3")]
    pub(crate) can_publish: bool,
    #[prost(bool, tag = "4")]
    pub(crate) can_subscribe: bool,
    #[prost(string, tag = "5")]
    pub(crate) schema_id: String,
    #[prost(string, tag = "6")]
    pub(crate) rpc_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SchemaRequest {
    #[prost(string, tag = "1")]
    pub(crate) schema_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SchemaInfo {
    #[prost(string, tag = "1")]
    pub(crate) schema_json: String,
    #[prost(string, tag = "2")]
    pub(crate) schema_id: String,
    #[prost(string, tag = "3")]
    pub(crate) rpc_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct EventHeader {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: bytes::Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ProducerEvent {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) schema_id: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) payload: bytes::Bytes,
    #[prost(message, repeated, tag = "4")]
    pub(crate) headers: Vec<EventHeader>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ConsumerEvent {
    #[prost(message, optional, tag = "1")]
    pub(crate) event: Option<ProducerEvent>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) replay_id: bytes::Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct FetchRequest {
    #[prost(string, tag = "1")]
    pub(crate) topic_name: String,
    #[prost(int32, tag = "2")]
    pub(crate) replay_preset: i32,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) replay_id: bytes::Bytes,
    #[prost(int32, tag = "4")]
    pub(crate) num_requested: i32,
    #[prost(string, tag = "5")]
    pub(crate) auth_refresh: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct FetchResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) events: Vec<ConsumerEvent>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) latest_replay_id: bytes::Bytes,
    #[prost(string, tag = "3")]
    pub(crate) rpc_id: String,
    #[prost(int32, tag = "4")]
    pub(crate) pending_num_requested: i32,
}
