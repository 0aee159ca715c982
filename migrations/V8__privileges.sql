-- The schema is for its owner and for the roles that it is granted to (`waltrail setup --grant-to`). A function may be executed
-- by every role unless that is taken away. A later migration that makes a function takes it away likewise.
REVOKE ALL ON SCHEMA waltrail FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA waltrail FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA waltrail FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA waltrail FROM PUBLIC;
