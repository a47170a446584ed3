defmodule Beamr.Host.Clean.RequestTest do
  use Beamr.CleanCase

  @request %{
    method: "POST",
    path: "/users/42",
    body: "héllo",
    params: %{"id" => "42"},
    query: [{"page", "2"}, {"page", "3"}],
    headers: %{"Content-Type" => "text/plain", "x-n" => 7}
  }

  defp request(name, args, request \\ @request, opts \\ []) do
    clean(name, args, :string, [hosts: [{Beamr.Host.Clean.Request, request}]] ++ opts)
  end

  test "is asked for its parts" do
    assert request("_req_method", []) == "POST"
    assert request("_req_path", []) == "/users/42"
    assert request("_req_body", []) == "héllo"

    for form <- [:pair, :pointer] do
      assert request("_req_param", ["id"], @request, form: form) == "42"
      assert request("_req_query", ["page"], @request, form: form) == "2"
      assert request("_req_header", ["x-n"], @request, form: form) == "7"
    end
  end

  test "has headers whatever their case" do
    for name <- ["content-type", "CONTENT-TYPE", "Content-Type"] do
      assert request("_req_header", [name]) == "text/plain"
    end
  end

  test "has defaults" do
    for none <- [nil, %{}, fn -> %{} end, fn -> nil end] do
      assert request("_req_method", [], none) == "GET"
      assert request("_req_path", [], none) == "/"
      assert request("_req_body", [], none) == ""
      assert request("_req_param", ["id"], none) == ""
      assert request("_req_query", ["id"], none) == ""
      assert request("_req_header", ["id"], none) == ""
    end
  end

  test "may be a function, asked each time" do
    {wasm, []} =
      guest("_req_path", [], :string,
        hosts: [{Beamr.Host.Clean.Request, fn -> Process.get(:request) end}]
      )

    for path <- ["/a", "/b"] do
      Process.put(:request, %{path: path})
      assert called(wasm, [], :string) == path
    end
  end

  test "is a map or a function" do
    assert_raise ArgumentError, fn -> request("_req_path", [], "GET /") end
  end
end
