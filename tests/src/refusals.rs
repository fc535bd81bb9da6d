//! Statements that must fail, and say why.

use crate::db::Db;

impl Db {
    /// Each is refused with a hint; a case is a statement, its SQLSTATE, and words of message, detail or hint.
    pub async fn refuses<S: AsRef<str>>(&self, cases: &[(S, &str, &str)]) {
        for (sql, code, words) in cases {
            let sql = sql.as_ref();
            let error = self.error(sql).await;
            let hint = error.hint().unwrap_or_default();
            let detail = error.detail().unwrap_or_default();
            let all = format!("{} | {detail} | {hint}", error.message());
            assert_eq!(error.code().code(), *code, "{sql}\n  {all}");
            assert!(all.contains(words), "{sql}\n  expected {words:?} in: {all}");
            assert!(!hint.is_empty(), "no hint: {sql}\n  {all}");
        }
    }

    /// [`Self::refuses`], and `state` (one text) answers the same before and after.
    pub async fn refuses_unchanged<S: AsRef<str>>(&self, state: &str, cases: &[(S, &str, &str)]) {
        let before: Option<String> = self.one(state).await;
        self.refuses(cases).await;
        let after: Option<String> = self.one(state).await;
        assert_eq!(after, before, "something changed");
    }
}
