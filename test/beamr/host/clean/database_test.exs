defmodule Beamr.Host.Clean.DatabaseTest do
  use Beamr.CleanCase

  defmodule Recorder do
    @behaviour Beamr.Host.Clean.Database

    @impl true
    def query(pid, sql, params), do: record(pid, {:query, sql, params})
    @impl true
    def execute(pid, sql, params), do: record(pid, {:execute, sql, params})
    @impl true
    def begin(pid), do: record(pid, :begin)
    @impl true
    def commit(pid), do: record(pid, :commit)
    @impl true
    def rollback(pid), do: record(pid, :rollback)

    defp record({pid, answer}, what) do
      send(pid, what)
      answer
    end
  end

  # An adapter for the sqlite3 command-line program: one process of it, which answers JSON.
  defmodule SQLite do
    @behaviour Beamr.Host.Clean.Database

    def open do
      Port.open({:spawn_executable, System.find_executable("sqlite3")}, [
        :binary,
        :stderr_to_stdout,
        args: ["-json", ":memory:"]
      ])
    end

    @impl true
    def query(port, sql, params) do
      with {:ok, text} <- ask(port, sql, params), do: rows(text)
    end

    @impl true
    def execute(port, sql, params) do
      with {:ok, _none} <- ask(port, sql, params),
           {:ok, [%{"n" => n}]} <- query(port, "select changes() as n", []),
           do: {:ok, n}
    end

    @impl true
    def begin(port), do: done(ask(port, "begin", []))
    @impl true
    def commit(port), do: done(ask(port, "commit", []))
    @impl true
    def rollback(port), do: done(ask(port, "rollback", []))

    defp done({:ok, _text}), do: :ok
    defp done(error), do: error

    defp rows(""), do: {:ok, []}
    defp rows(text), do: Beamr.Host.Clean.JSON.decode(text)

    defp ask(port, sql, params) do
      bound =
        for {param, n} <- Enum.with_index(params, 1),
            do: ".parameter set ?#{n} \"#{literal(param)}\"\n"

      Port.command(port, [".parameter clear\n", bound, sql, ";\nselect 'end' as done;\n"])
      answer(port, "")
    end

    defp literal(n) when is_number(n), do: to_string(n)
    defp literal(text), do: "'" <> String.replace(text, "'", "''") <> "'"

    defp result(text) do
      if text =~ ~r/\A(Parse|Runtime) error/, do: {:error, text}, else: {:ok, text}
    end

    defp answer(port, text) do
      receive do
        {^port, {:data, data}} ->
          text = text <> data

          case String.split(text, ~s|[{"done":"end"}]\n|) do
            [before, ""] -> result(String.trim(before))
            [_unfinished] -> answer(port, text)
          end
      end
    end
  end

  defp database(name, args, result, answer, opts \\ []) do
    hosts = [{Beamr.Host.Clean.Database, {Recorder, {self(), answer}}}]
    clean(name, args, result, [hosts: hosts] ++ opts)
  end

  @sql "select ?, ?"

  test "_db_query hands parameters over and rows back, in both forms" do
    rows = [%{"id" => 1, "name" => "Zoë"}, [id: 2, name: nil]]

    for form <- [:pair, :pointer] do
      json =
        database("_db_query", [@sql, ~S|[1.5, "x", null, true]|], :string, {:ok, rows}, form: form)

      assert json == ~S|[{"id":1,"name":"Zoë"},{"id":2,"name":null}]|
      assert_received {:query, @sql, [1.5, "x", nil, true]}
    end
  end

  test "_db_query without rows is an empty array, and without parameters has none" do
    assert database("_db_query", [@sql, ""], :string, {:ok, []}) == "[]"
    assert_received {:query, @sql, []}
  end

  test "_db_query that fails is empty" do
    assert database("_db_query", [@sql, "[]"], :string, {:error, :syntax}) == ""

    for params <- ["{}", "[1", "7"] do
      assert database("_db_query", [@sql, params], :string, {:ok, []}) == ""
    end

    assert_received {:query, _sql, []}
    refute_received {:query, _sql, _params}
  end

  test "_db_execute answers the count, in 64 bits and 32, and -1 for an error" do
    for type <- [:i64, :i32] do
      assert database("_db_execute", [@sql, "[1]"], type, {:ok, 0}) == 0
      assert database("_db_execute", [@sql, "[1]"], type, {:ok, 3}) == 3
      assert database("_db_execute", [@sql, "[1]"], type, {:error, :busy}) == -1
      assert database("_db_execute", [@sql, "?"], type, {:ok, 3}) == -1
    end
  end

  for {name, what} <- [
        {"_db_begin", :begin},
        {"_db_commit", :commit},
        {"_db_rollback", :rollback}
      ] do
    test "#{name} answers 1, and 0 for an error" do
      assert database(unquote(name), [], :i32, :ok) == 1
      assert_received unquote(what)
      assert database(unquote(name), [], :i32, {:error, :none}) == 0
    end
  end

  test "an adapter is needed" do
    for arg <- [nil, Recorder, {nil, 1}] do
      assert_raise ArgumentError, ~r/needs {adapter, connection}/, fn ->
        Beamr.instantiate("(module)", hosts: [{Beamr.Host.Clean.Database, arg}])
      end
    end
  end

  if System.find_executable("sqlite3") do
    test "a real database behind an adapter" do
      port = SQLite.open()
      hosts = [{Beamr.Host.Clean.Database, {SQLite, port}}]
      execute = &clean("_db_execute", [&1, &2], :i64, hosts: hosts)
      query = &clean("_db_query", [&1, &2], :string, hosts: hosts)

      assert execute.("create table t (id integer, name text)", "") == 0
      assert clean("_db_begin", [], :i32, hosts: hosts) == 1
      assert execute.("insert into t values (?1, ?2), (?1 + 1, ?2)", ~S|[1, "O'Hara"]|) == 2
      assert clean("_db_commit", [], :i32, hosts: hosts) == 1
      assert clean("_db_begin", [], :i32, hosts: hosts) == 1
      assert execute.("delete from t", "[]") == 2
      assert clean("_db_rollback", [], :i32, hosts: hosts) == 1

      assert query.("select * from t where id > ?1", "[1]") == ~S|[{"id":2,"name":"O'Hara"}]|
      assert query.("select * from none", "[]") == ""
      Port.close(port)
    end
  end
end
